package ctl

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// CopyOptions are those of "berth cp".
type CopyOptions struct {
	SessionOptions
	NoPreserve bool // of owners, which only tar in the container can keep
}

// A place is a path here or in a pod.
type place struct {
	namespace, pod, path string
}

func placeOf(arg, namespace string) (place, error) {
	pod, file, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(pod, ".") || strings.HasPrefix(pod, "/") {
		return place{path: arg}, nil
	}
	p := place{namespace: namespace, pod: pod, path: file}
	if ns, name, ok := strings.Cut(pod, "/"); ok {
		p.namespace, p.pod = ns, name
	}
	if p.pod == "" || p.path == "" || p.namespace == "" {
		return p, fmt.Errorf("filespec must match the canonical format: [[namespace/]pod:]file/path, and %q does not", arg)
	}
	return p, nil
}

// Copy copies files and folders into a pod or out of it. The container must have tar.
func (c *Client) Copy(ctx context.Context, from, to string, o CopyOptions) error {
	src, err := placeOf(from, o.Namespace)
	if err != nil {
		return err
	}
	dst, err := placeOf(to, o.Namespace)
	if err != nil {
		return err
	}
	switch {
	case src.pod != "" && dst.pod != "":
		return errors.New("one of src or dest must be a local file specification")
	case src.pod == "" && dst.pod == "":
		return errors.New("one of src or dest must be a remote file specification")
	case src.path == "" || dst.path == "":
		return errors.New("filepath can not be empty")
	case src.pod != "":
		return c.copyOut(ctx, src, dst.path, o)
	}
	return c.copyIn(ctx, src.path, dst, o)
}

// copyIn sends an archive to a tar in the container.
func (c *Client) copyIn(ctx context.Context, from string, to place, o CopyOptions) error {
	if _, err := os.Lstat(from); err != nil {
		return fmt.Errorf("%s doesn't exist in local filesystem", from)
	}
	name := path.Clean(to.path)
	s := o.SessionOptions
	s.Namespace, s.Quiet = to.namespace, false
	if c.isDir(ctx, to, s) {
		name = path.Join(name, filepath.Base(from))
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(archive(w, from, path.Base(name))) }()
	command := []string{"tar", "-xmf", "-"}
	if o.NoPreserve {
		command = []string{"tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-"}
	}
	if dir := path.Dir(name); dir != "." {
		command = append(command, "-C", dir)
	}
	s.Stdin, s.In, s.Out, s.Quiet = true, r, o.Err, true
	err := c.Exec(ctx, to.pod, command, s)
	r.Close() // who archives goes on no more
	return err
}

func (c *Client) isDir(ctx context.Context, p place, s SessionOptions) bool {
	s.Stdin, s.Out, s.Err, s.Quiet = false, io.Discard, io.Discard, true
	return c.Exec(ctx, p.pod, []string{"test", "-d", p.path}, s) == nil
}

// archive writes a file or folder as name.
func archive(to io.Writer, root, name string) error {
	w := tar.NewWriter(to)
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(file); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return nil // a socket: archives have none
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		h.Name = path.Join(name, filepath.ToSlash(rel))
		if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// copyOut unpacks what a tar in the container sends. The container is not trusted: nothing gets outside of the destination.
func (c *Client) copyOut(ctx context.Context, from place, to string, o CopyOptions) error {
	s := o.SessionOptions
	s.Namespace = from.namespace
	var said bytes.Buffer
	r, w := io.Pipe()
	s.Stdin, s.Out, s.Err = false, w, &said
	done := make(chan error, 1)
	go func() {
		err := c.Exec(ctx, from.pod, []string{"tar", "cf", "-", from.path}, s)
		w.CloseWithError(err)
		done <- err
	}()
	dest := to
	if info, err := os.Stat(to); err == nil && info.IsDir() {
		dest = filepath.Join(to, path.Base(path.Clean(from.path)))
	}
	err := unpack(r, strings.TrimLeft(path.Clean(from.path), "/"), dest, o.Err)
	r.Close()
	if failed := <-done; failed != nil && !errors.Is(failed, io.ErrClosedPipe) {
		var exit *Exit
		if errors.As(failed, &exit) {
			_, _ = o.Err.Write(said.Bytes())
		}
		return failed
	}
	return err
}

// unpack writes the files of an archive that are prefix, or below it, to dest. What leads elsewhere is left out, with a word.
func unpack(from io.Reader, prefix, dest string, warn io.Writer) error {
	parent, base := filepath.Dir(filepath.Clean(dest)), filepath.Base(filepath.Clean(dest))
	root, err := os.OpenRoot(parent) // links in it that lead out are errors
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, from) // the rest of the archive: its tar must not end by a closed pipe
			return err
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		rest, ok := strings.CutPrefix(name, strings.TrimPrefix(path.Clean("/"+prefix), "/"))
		if !ok || rest != "" && rest[0] != '/' && prefix != "" && prefix != "." {
			fmt.Fprintf(warn, "warning: file %q is outside target destination, skipping\n", h.Name)
			continue
		}
		if err := unpackOne(root, filepath.Join(base, filepath.FromSlash(rest)), h, r, warn); err != nil {
			return err
		}
	}
}

func unpackOne(root *os.Root, name string, h *tar.Header, content io.Reader, warn io.Writer) error {
	mode := h.FileInfo().Mode().Perm()
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, mode|0o700)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink, tar.TypeLink:
		fmt.Fprintf(warn, "warning: skipping symlink: %q -> %q\n", name, h.Linkname)
	default:
		fmt.Fprintf(warn, "warning: skipping %q, which is no file, folder or link\n", name)
	}
	return nil
}

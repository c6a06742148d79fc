package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// debianPackage returns the file of a Debian package, downloaded to dir unless one of that name is there already.
func debianPackage(ctx context.Context, dir, name string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	find := func() (string, error) {
		found, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
		if err != nil || len(found) == 0 {
			return "", errors.Join(err, fmt.Errorf("no package %s in %s", name, dir))
		}
		return found[len(found)-1], nil
	}
	if file, err := find(); err == nil {
		return file, nil
	}
	err := download(ctx, dir, name)
	if err != nil {
		// A fresh machine has no package lists, an old one may name versions that are gone.
		if out, updateErr := exec.CommandContext(ctx, "apt-get", "-q", "update").CombinedOutput(); updateErr != nil {
			return "", fmt.Errorf("%w, and apt-get update: %w\n%s", err, updateErr, out)
		}
		err = download(ctx, dir, name)
	}
	if err != nil {
		return "", err
	}
	return find()
}

func download(ctx context.Context, dir, name string) error {
	// The user _apt, as whom apt would download, cannot write here; the signature is checked all the same.
	download := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name)
	download.Dir = dir
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download %s: %w\n%s", name, err, out)
	}
	return nil
}

// unpack adds to t those files of a Debian package whose paths match one of the patterns of path.Match, and returns how
// many there were.
func unpack(ctx context.Context, t *Tree, deb string, patterns ...string) (int, error) {
	list := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := list.Output()
	if err != nil {
		return 0, fmt.Errorf("dpkg-deb --fsys-tarfile %s: %w", deb, err)
	}
	count := 0
	for r := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return count, nil
		}
		if err != nil {
			return count, fmt.Errorf("%s: %w", deb, err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		if !matches(name, patterns) {
			continue
		}
		count++
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(r)
			if err != nil {
				return count, fmt.Errorf("%s: %w", deb, err)
			}
			t.File(name, h.Mode, data)
		case tar.TypeSymlink:
			t.Symlink(name, h.Linkname)
		default:
			return count, fmt.Errorf("%s: %s has an unexpected type %q", deb, name, h.Typeflag)
		}
	}
}

func matches(name string, patterns []string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); err == nil && ok {
			return true
		}
	}
	return false
}

// buildPrograms compiles the named programs of this folder, statically, and returns where they are.
func buildPrograms(ctx context.Context, dir string, names ...string) (map[string]string, error) {
	const module = "github.com/berth-node/berth/integration/images/"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	programs := map[string]string{}
	for _, name := range names {
		file := filepath.Join(dir, name)
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", file, module+name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go build %s: %w\n%s", name, err, out)
		}
		programs[name] = file
	}
	return programs, nil
}

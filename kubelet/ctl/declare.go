package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/berth-node/berth/kubelet/server"
)

// manifestSuffixes are those of files that a folder is read for.
var manifestSuffixes = []string{".yaml", ".yml", ".json"}

// documents reads files, folders and, for "-", in.
func documents(paths []string, recursive bool, in io.Reader) (all []server.Document, err error) {
	if len(paths) == 0 {
		return nil, errors.New("must specify one of -f")
	}
	for _, path := range paths {
		if path == "-" {
			data, err := io.ReadAll(in)
			if err != nil {
				return nil, err
			}
			all = append(all, server.Document{File: "STDIN", Data: data})
			continue
		}
		found, err := documentsIn(path, recursive)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func documentsIn(path string, recursive bool) (all []server.Document, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the path %q does not exist", path)
	}
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != path && !recursive:
			return filepath.SkipDir
		case d.IsDir(), info.IsDir() && !slices.Contains(manifestSuffixes, filepath.Ext(file)):
			return nil
		}
		data, err := os.ReadFile(file)
		if err == nil {
			all = append(all, server.Document{File: file, Data: data})
		}
		return err
	})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("error reading %v: recognized file extensions are %v", []string{path}, manifestSuffixes)
	}
	return all, err
}

// ApplyOptions are those of "berth apply".
type ApplyOptions struct {
	Files     []string
	Recursive bool
	Namespace string // that the documents must be in, if the user named one
	DryRun    bool
	Output    string // "" or "name"
	In        io.Reader
	Out, Err  io.Writer
}

// Apply declares what is in files.
func (c *Client) Apply(ctx context.Context, o ApplyOptions) error {
	docs, err := documents(o.Files, o.Recursive, o.In)
	if err != nil {
		return err
	}
	var result server.ApplyResult
	body := server.ApplyRequest{Documents: docs, Namespace: o.Namespace, DryRun: o.DryRun}
	if err := c.get(ctx, call{method: http.MethodPost, path: "/berth/v1/apply", body: body}, &result); err != nil {
		return err
	}
	for _, w := range result.Warnings {
		fmt.Fprintln(o.Err, "Warning:", w)
	}
	dry := ""
	if o.DryRun {
		dry = " (server dry run)"
	}
	for _, a := range result.Applied {
		name := strings.ToLower(a.Kind) + "/" + a.Name
		if o.Output != "name" {
			name += " " + a.Action + dry
		}
		fmt.Fprintln(o.Out, name)
	}
	return nil
}

// DeleteOptions are those of "berth delete".
type DeleteOptions struct {
	Scope
	Files          []string
	Recursive      bool
	All            bool
	Grace          int64 // seconds; negative: the pod's own
	Now, Force     bool
	IgnoreNotFound bool
	DryRun         bool
	Wait           bool
	Timeout        time.Duration // 0: none
	Output         string        // "" or "name"
	In             io.Reader
	Out, Err       io.Writer
}

// A doomed object is one that is to be deleted.
type doomed struct {
	target
	namespace string
	uid       types.UID
}

// Delete deletes objects, and waits until they are gone.
func (c *Client) Delete(ctx context.Context, args []string, o DeleteOptions) error {
	all, failed := c.doomed(ctx, args, o)
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Timeout)
		defer cancel()
	}
	var deleted []doomed
	for _, d := range all {
		err := c.delete(ctx, &d, o)
		switch {
		case o.IgnoreNotFound && apierrors.IsNotFound(err):
		case err != nil:
			failed = append(failed, err)
		default:
			deleted = append(deleted, d)
		}
	}
	if o.Wait && !o.DryRun {
		for _, d := range deleted {
			if err := c.awaitGone(ctx, d.target, Scope{Namespace: d.namespace}, d.uid); err != nil {
				failed = append(failed, err)
			}
		}
	}
	return Joined(o.Err, failed)
}

func (c *Client) doomed(ctx context.Context, args []string, o DeleteOptions) ([]doomed, []error) {
	if len(o.Files) > 0 {
		all, err := c.doomedByFiles(ctx, o)
		if err != nil {
			return nil, []error{err}
		}
		return all, nil
	}
	targets, err := c.targets(ctx, args)
	if err != nil {
		return nil, []error{err}
	}
	var all []doomed
	var failed []error
	for _, t := range targets {
		if t.name != "" {
			all = append(all, doomed{target: t, namespace: o.Namespace})
			continue
		}
		if !o.All && o.Labels == "" && o.Fields == "" {
			return nil, []error{errors.New("resource(s) were provided, but no name was specified")}
		}
		var list unstructured.UnstructuredList
		var raw unstructured.Unstructured
		if err := c.get(ctx, call{path: t.path(o.Scope), query: o.query()}, &raw); err != nil {
			failed = append(failed, err)
			continue
		}
		if l, err := raw.ToList(); err == nil {
			list = *l
		}
		for i := range list.Items {
			all = append(all, doomed{target: target{t.kind, list.Items[i].GetName()}, namespace: list.Items[i].GetNamespace()})
		}
		if len(list.Items) == 0 {
			fmt.Fprintln(o.Out, "No resources found")
		}
	}
	return all, failed
}

// doomedByFiles reads kinds and names alone: what is wrong otherwise does not keep anything from being deleted.
func (c *Client) doomedByFiles(ctx context.Context, o DeleteOptions) (all []doomed, err error) {
	docs, err := documents(o.Files, o.Recursive, o.In)
	if err != nil {
		return nil, err
	}
	for _, doc := range docs {
		for d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(string(doc.Data)), 4096); ; {
			var object unstructured.Unstructured
			if err := d.Decode(&object.Object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("%s: %w", doc.File, err)
			}
			if len(object.Object) == 0 {
				continue
			}
			kind, err := c.resource(ctx, object.GetKind())
			if err != nil {
				return nil, fmt.Errorf("%s: %w", doc.File, err)
			}
			namespace := object.GetNamespace()
			if namespace == "" {
				namespace = o.Namespace
			}
			all = append(all, doomed{target: target{kind, object.GetName()}, namespace: namespace})
		}
	}
	return all, nil
}

func (c *Client) delete(ctx context.Context, d *doomed, o DeleteOptions) error {
	options := metav1.DeleteOptions{}
	grace := o.Grace
	if o.Now {
		grace = 1
	}
	if o.Force && grace < 0 {
		grace = 0
	}
	if grace >= 0 {
		options.GracePeriodSeconds = &grace
	}
	if o.DryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	var answer unstructured.Unstructured
	if err := c.get(ctx, call{method: http.MethodDelete, path: d.path(Scope{Namespace: d.namespace}), body: options}, &answer.Object); err != nil {
		return err
	}
	d.uid = answer.GetUID()
	if uid, ok, _ := unstructured.NestedString(answer.Object, "details", "uid"); ok {
		d.uid = types.UID(uid)
	}
	if o.Output == "name" {
		fmt.Fprintln(o.Out, d)
		return nil
	}
	done := "deleted"
	if grace == 0 {
		done = "force deleted"
	}
	if d.kind.Namespaced {
		done += " from " + d.namespace + " namespace"
	}
	if o.DryRun {
		done += " (server dry run)"
	}
	fmt.Fprintf(o.Out, "%s %q %s\n", strings.ToLower(d.kind.Kind), d.name, done)
	return nil
}

// Restart ends pods, or one container of each, in order, and lets them begin anew.
func (c *Client) Restart(ctx context.Context, args []string, namespace, container string, grace int64, out, errOut io.Writer) error {
	var failed []error
	for _, arg := range args {
		name, err := PodName(arg)
		if err == nil {
			q := url.Values{}
			if container != "" {
				q.Set("container", container)
			}
			if grace >= 0 {
				q.Set("gracePeriodSeconds", strconv.FormatInt(grace, 10))
			}
			err = c.get(ctx, call{
				method: http.MethodPost, query: q,
				path: "/berth/v1/namespaces/" + url.PathEscape(namespace) + "/pods/" + url.PathEscape(name) + "/restart",
			}, &struct{}{})
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintf(out, "pod/%s restarted\n", name)
	}
	return Joined(errOut, failed)
}

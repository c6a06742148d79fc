package ctl

import (
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/client-go/util/jsonpath"
)

// A columnsPrinter prints the columns that the user names: NAME:.metadata.name,PHASE:.status.phase
type columnsPrinter struct {
	headers   []string
	paths     []*jsonpath.JSONPath
	noHeaders bool
}

func newColumnsPrinter(spec string, noHeaders bool) (printers.ResourcePrinter, error) {
	if spec == "" {
		return nil, fmt.Errorf("custom-columns format specified but no custom columns given")
	}
	p := &columnsPrinter{noHeaders: noHeaders}
	for _, column := range strings.Split(spec, ",") {
		header, path, ok := strings.Cut(column, ":")
		if !ok {
			return nil, fmt.Errorf("unexpected custom-columns spec: %s, expected <header>:<json-path-expr>", column)
		}
		j := jsonpath.New(header).AllowMissingKeys(true)
		if err := j.Parse(relaxed(path)); err != nil {
			return nil, err
		}
		p.headers, p.paths = append(p.headers, header), append(p.paths, j)
	}
	return p, nil
}

func (p *columnsPrinter) PrintObj(o runtime.Object, out io.Writer) error {
	w := printers.GetNewTabWriter(out)
	defer w.Flush()
	if !p.noHeaders {
		p.noHeaders = true // they are printed once
		fmt.Fprintln(w, strings.Join(p.headers, "\t"))
	}
	object := o.(*unstructured.Unstructured)
	if !object.IsList() {
		return p.row(w, object.Object)
	}
	return object.EachListItem(func(item runtime.Object) error { return p.row(w, item.(*unstructured.Unstructured).Object) })
}

func (p *columnsPrinter) row(w io.Writer, object map[string]any) error {
	var cells []string
	for _, path := range p.paths {
		found, err := path.FindResults(object)
		if err != nil {
			return err
		}
		var values []string
		for _, group := range found {
			for _, v := range group {
				values = append(values, fmt.Sprint(v.Interface()))
			}
		}
		if len(values) == 0 {
			values = []string{"<none>"}
		}
		cells = append(cells, strings.Join(values, ","))
	}
	_, err := fmt.Fprintln(w, strings.Join(cells, "\t"))
	return err
}

package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/printers"
)

// GetOptions are those of "berth get".
type GetOptions struct {
	Scope
	Output         string // "", wide, json, yaml, name, jsonpath=…, go-template=…, custom-columns=…
	NoHeaders      bool
	ShowLabels     bool
	LabelColumns   []string
	SortBy         string // a path
	Watch          bool
	WatchOnly      bool
	WatchEvents    bool // say what kind of change it is
	IgnoreNotFound bool
	Out, Err       io.Writer
}

const tables = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

// Get prints objects.
func (c *Client) Get(ctx context.Context, args []string, o GetOptions) error {
	targets, err := c.targets(ctx, args)
	if err != nil {
		return err
	}
	p, err := newPrinter(o, targets)
	if err != nil {
		return err
	}
	if o.Watch || o.WatchOnly {
		if o.SortBy != "" {
			fmt.Fprintln(o.Err, "warning: --watch requested, --sort-by will be ignored for watch events received")
		}
		if len(targets) > 1 {
			return errors.New("you may only specify a single resource or type/name with --watch")
		}
		return c.getAndWatch(ctx, targets[0], o, p)
	}
	var failed []error
	for _, t := range targets {
		if err := c.getOne(ctx, t, o, p); err != nil && (!o.IgnoreNotFound || !apierrors.IsNotFound(err)) {
			failed = append(failed, err)
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	if len(failed) == 0 && p.printed == 0 && !o.IgnoreNotFound && p.isTable() {
		if where := o.Namespace; !o.AllNamespaces && targets[0].kind.Namespaced {
			fmt.Fprintf(o.Err, "No resources found in %s namespace.\n", where)
		} else {
			fmt.Fprintln(o.Err, "No resources found")
		}
	}
	return Joined(o.Err, failed)
}

// Joined prints all errors but the last, which it returns.
func Joined(to io.Writer, failed []error) error {
	if len(failed) == 0 {
		return nil
	}
	for _, err := range failed[:len(failed)-1] {
		fmt.Fprintln(to, Message(err))
	}
	return failed[len(failed)-1]
}

func (c *Client) getOne(ctx context.Context, t target, o GetOptions, p *printer) error {
	var object unstructured.Unstructured
	if err := c.get(ctx, p.call(t, o.Scope), &object); err != nil {
		return err
	}
	return p.print(t, object, "")
}

// getAndWatch lists, and then tells each change.
func (c *Client) getAndWatch(ctx context.Context, t target, o GetOptions, p *printer) error {
	scope := o.Scope
	if t.name != "" { // a watch is one of a list
		scope.Fields = strings.TrimPrefix(scope.Fields+",metadata.name="+t.name, ",")
		if err := c.get(ctx, call{path: t.path(scope)}, &struct{}{}); err != nil {
			return err
		}
	}
	list := target{kind: t.kind}
	r := p.call(list, scope)
	var object unstructured.Unstructured
	if err := c.get(ctx, r, &object); err != nil {
		return err
	}
	if !o.WatchOnly {
		if err := p.each(list, object, "ADDED"); err != nil {
			return err
		}
	}
	r.query.Set("resourceVersion", object.GetResourceVersion())
	err := c.watch(ctx, r, func(e change) (bool, error) {
		var one unstructured.Unstructured
		if err := one.UnmarshalJSON(e.Object); err != nil {
			return false, err
		}
		return true, p.print(list, one, string(e.Type))
	})
	if ctx.Err() != nil {
		return nil // whoever follows ends it so
	}
	return err
}

// A printer prints objects in the form that was asked for.
type printer struct {
	o       GetOptions
	table   bool
	to      printers.ResourcePrinter
	printed int
	several bool                        // kinds
	list    []unstructured.Unstructured // for those that print all in one
	alone   bool                        // one object was asked for by name
}

func newPrinter(o GetOptions, targets []target) (*printer, error) {
	p := &printer{o: o, several: len(targets) > 1, alone: len(targets) == 1 && targets[0].name != ""}
	for _, t := range targets {
		p.several = p.several && t.kind.Name != ""
	}
	format, argument, _ := strings.Cut(o.Output, "=")
	var err error
	switch format {
	case "", "wide":
		p.table = true
		p.to = printers.NewTablePrinter(printers.PrintOptions{
			Wide: format == "wide", NoHeaders: o.NoHeaders, ShowLabels: o.ShowLabels, ColumnLabels: o.LabelColumns, WithNamespace: o.AllNamespaces,
		})
	case "json":
		p.to = &printers.JSONPrinter{}
	case "yaml":
		p.to = &printers.YAMLPrinter{}
	case "name":
		p.to = &printers.NamePrinter{ShortOutput: true}
	case "jsonpath", "jsonpath-as-json", "jsonpath-file":
		p.to, err = jsonPathPrinter(format, argument)
	case "go-template", "template", "go-template-file":
		p.to, err = templatePrinter(format, argument)
	case "custom-columns":
		p.to, err = newColumnsPrinter(argument, o.NoHeaders)
	default:
		err = fmt.Errorf("unable to match a printer suitable for the output format %q, allowed formats are: custom-columns,go-template,go-template-file,json,jsonpath,jsonpath-as-json,jsonpath-file,name,wide,yaml", o.Output)
	}
	return p, err
}

func fromFile(format, argument string) (string, error) {
	if !strings.HasSuffix(format, "-file") {
		return argument, nil
	}
	data, err := os.ReadFile(argument)
	return string(data), err
}

func jsonPathPrinter(format, argument string) (printers.ResourcePrinter, error) {
	text, err := fromFile(format, argument)
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, errors.New("template format specified but no template given")
	}
	p, err := printers.NewJSONPathPrinter(relaxed(text))
	if err != nil {
		return nil, err
	}
	p.AllowMissingKeys(true) // what an object does not have is empty
	p.EnableJSONOutput(format == "jsonpath-as-json")
	return p, nil
}

// relaxed lets a path stand without its braces: ".status.phase" is "{.status.phase}".
func relaxed(path string) string {
	if path == "" || strings.ContainsAny(path, "{}") {
		return path
	}
	return "{." + strings.TrimPrefix(path, ".") + "}"
}

func templatePrinter(format, argument string) (printers.ResourcePrinter, error) {
	text, err := fromFile(format, argument)
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, errors.New("template format specified but no template given")
	}
	return printers.NewGoTemplatePrinter([]byte(text))
}

func (p *printer) isTable() bool { return p.table }

func (p *printer) call(t target, s Scope) call {
	r := call{path: t.path(s), query: s.query()}
	if t.name != "" {
		r.query = map[string][]string{}
	}
	if p.table {
		r.accept = tables
		switch {
		case p.o.SortBy != "":
			r.query.Set("includeObject", "Object")
		case p.o.ShowLabels || p.o.AllNamespaces || len(p.o.LabelColumns) > 0:
			r.query.Set("includeObject", "Metadata")
		}
	}
	return r
}

// print prints an answer: an object, a list or a table. In a watch it says what kind of change it is.
func (p *printer) print(t target, object unstructured.Unstructured, event string) error {
	if p.table {
		return p.printTable(t, object, event)
	}
	if event != "" || p.isByItem() {
		return p.each(t, object, event)
	}
	if object.IsList() {
		list, err := object.ToList()
		if err != nil {
			return err
		}
		for i := range list.Items {
			named(&list.Items[i], t)
		}
		p.list = append(p.list, list.Items...)
		return nil
	}
	p.list = append(p.list, object)
	return nil
}

// isByItem reports whether the form has each object for itself, in the order in which they come.
func (p *printer) isByItem() bool { return p.o.Output == "name" && p.o.SortBy == "" }

// each prints the objects of an answer one by one.
func (p *printer) each(t target, object unstructured.Unstructured, event string) error {
	if p.table {
		return p.printTable(t, object, event)
	}
	if !object.IsList() {
		return p.one(object, event)
	}
	return object.EachListItem(func(o runtime.Object) error {
		item := o.(*unstructured.Unstructured)
		named(item, t)
		return p.one(*item, event)
	})
}

func (p *printer) one(object unstructured.Unstructured, event string) error {
	p.printed++
	if p.o.WatchEvents && event != "" {
		object = unstructured.Unstructured{Object: map[string]any{"type": event, "object": object.Object, "kind": "WatchEvent", "apiVersion": "meta.k8s.io/v1"}}
	}
	return p.to.PrintObj(&object, p.o.Out)
}

// named says of what kind an item of a list is.
func named(o *unstructured.Unstructured, t target) {
	if o.GetKind() == "" {
		o.SetAPIVersion("v1")
		o.SetKind(t.kind.Kind)
	}
}

func (p *printer) printTable(t target, object unstructured.Unstructured, event string) error {
	data, err := object.MarshalJSON()
	if err != nil {
		return err
	}
	var table metav1.Table
	if err := json.Unmarshal(data, &table); err != nil {
		return err
	}
	if p.o.SortBy != "" && len(table.Rows) > 1 {
		if err := sortBy(table.Rows, p.o.SortBy, objectOf); err != nil {
			return err
		}
	}
	for i := range table.Rows {
		row := &table.Rows[i]
		if len(row.Object.Raw) > 0 {
			meta := &metav1.PartialObjectMetadata{}
			if err := json.Unmarshal(row.Object.Raw, meta); err != nil {
				return err
			}
			row.Object.Object = meta
		}
		if p.several && len(row.Cells) > 0 {
			row.Cells[0] = strings.ToLower(t.kind.Kind) + "/" + fmt.Sprint(row.Cells[0])
		}
	}
	if p.o.WatchEvents && event != "" {
		if len(table.ColumnDefinitions) > 0 {
			table.ColumnDefinitions = append([]metav1.TableColumnDefinition{{Name: "Event", Type: "string"}}, table.ColumnDefinitions...)
		}
		for i := range table.Rows {
			table.Rows[i].Cells = append([]any{event}, table.Rows[i].Cells...)
		}
	}
	if len(table.Rows) == 0 {
		return nil
	}
	if p.several && p.printed > 0 && t.name == "" {
		fmt.Fprintln(p.o.Out)
	}
	p.printed += len(table.Rows)
	return p.to.PrintObj(&table, p.o.Out)
}

func objectOf(row metav1.TableRow) (map[string]any, error) {
	var o unstructured.Unstructured // which tells whole numbers from others
	err := o.UnmarshalJSON(row.Object.Raw)
	return o.Object, err
}

// end prints what is printed all in one.
func (p *printer) end() error {
	if p.table || p.isByItem() {
		return nil
	}
	p.printed += len(p.list)
	if p.alone {
		if len(p.list) == 0 {
			return nil
		}
		return p.to.PrintObj(&p.list[0], p.o.Out)
	}
	if p.o.SortBy != "" {
		if err := sortBy(p.list, p.o.SortBy, func(o unstructured.Unstructured) (map[string]any, error) { return o.Object, nil }); err != nil {
			return err
		}
	}
	if p.o.Output == "name" {
		for i := range p.list {
			if err := p.to.PrintObj(&p.list[i], p.o.Out); err != nil {
				return err
			}
		}
		return nil
	}
	items := make([]any, len(p.list))
	for i := range p.list {
		items[i] = p.list[i].Object
	}
	return p.to.PrintObj(&unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "List", "metadata": map[string]any{"resourceVersion": ""}, "items": items,
	}}, p.o.Out)
}

package ctl

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"

	v1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/cli-runtime/pkg/printers"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// TopOptions are those of "berth top".
type TopOptions struct {
	Scope
	Containers, NoHeaders, Sum bool
	SortBy                     string // "", cpu or memory
	Out, Err                   io.Writer
}

const metricsPath = "/apis/metrics.k8s.io/v1beta1"

// TopPods prints what pods use.
func (c *Client) TopPods(ctx context.Context, name string, o TopOptions) error {
	if o.SortBy != "" && o.SortBy != "cpu" && o.SortBy != "memory" {
		return fmt.Errorf("--sort-by accepts only cpu or memory")
	}
	path := metricsPath
	if !o.AllNamespaces {
		path += "/namespaces/" + url.PathEscape(o.Namespace)
	}
	path += "/pods"
	var list metrics.PodMetricsList
	if name != "" {
		var one metrics.PodMetrics
		if err := c.get(ctx, call{path: path + "/" + url.PathEscape(name)}, &one); err != nil {
			return err
		}
		list.Items = []metrics.PodMetrics{one}
	} else if err := c.get(ctx, call{path: path, query: o.query()}, &list); err != nil {
		return err
	}
	if len(list.Items) == 0 {
		if o.AllNamespaces {
			fmt.Fprintln(o.Err, "No resources found")
		} else {
			fmt.Fprintf(o.Err, "No resources found in %s namespace.\n", o.Namespace)
		}
		return nil
	}
	o.print(list.Items)
	return nil
}

func (o *TopOptions) print(pods []metrics.PodMetrics) {
	if o.SortBy != "" {
		slices.SortStableFunc(pods, func(a, b metrics.PodMetrics) int {
			return -podUse(&a, v1.ResourceName(o.SortBy)).Cmp(*podUse(&b, v1.ResourceName(o.SortBy)))
		})
	}
	w := printers.GetNewTabWriter(o.Out)
	defer w.Flush()
	namespace := func(s string) {
		if o.AllNamespaces {
			fmt.Fprintf(w, "%s\t", s)
		}
	}
	if !o.NoHeaders {
		namespace("NAMESPACE")
		if o.Containers {
			fmt.Fprint(w, "POD\t")
		}
		fmt.Fprintln(w, "NAME\tCPU(cores)\tMEMORY(bytes)")
	}
	var cpu, memory quantity.Quantity
	for i := range pods {
		p := &pods[i]
		cpu.Add(*podUse(p, v1.ResourceCPU))
		memory.Add(*podUse(p, v1.ResourceMemory))
		if !o.Containers {
			namespace(p.Namespace)
			fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, cores(podUse(p, v1.ResourceCPU)), bytesOf(podUse(p, v1.ResourceMemory)))
			continue
		}
		for _, c := range p.Containers {
			namespace(p.Namespace)
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.Name, c.Name, cores(c.Usage.Cpu()), bytesOf(c.Usage.Memory()))
		}
	}
	if o.Sum {
		if o.Containers {
			fmt.Fprint(w, "\t")
		}
		namespace("")
		fmt.Fprint(w, "\t________\t________\n")
		if o.Containers {
			fmt.Fprint(w, "\t")
		}
		namespace("")
		fmt.Fprintf(w, "\t%s\t%s\n", cores(&cpu), bytesOf(&memory))
	}
}

func podUse(p *metrics.PodMetrics, name v1.ResourceName) *quantity.Quantity {
	var sum quantity.Quantity
	for _, c := range p.Containers {
		sum.Add(c.Usage[name])
	}
	return &sum
}

func cores(q *quantity.Quantity) string { return fmt.Sprintf("%dm", q.MilliValue()) }

func bytesOf(q *quantity.Quantity) string { return fmt.Sprintf("%dMi", q.Value()>>20) }

// TopNode prints what the node uses.
func (c *Client) TopNode(ctx context.Context, name string, o TopOptions) error {
	var used metrics.NodeMetricsList
	if err := c.get(ctx, call{path: metricsPath + "/nodes"}, &used); err != nil {
		return err
	}
	var nodes v1.NodeList
	if err := c.get(ctx, call{path: "/api/v1/nodes"}, &nodes); err != nil {
		return err
	}
	w := printers.GetNewTabWriter(o.Out)
	defer w.Flush()
	if !o.NoHeaders {
		fmt.Fprintln(w, "NAME\tCPU(cores)\tCPU(%)\tMEMORY(bytes)\tMEMORY(%)")
	}
	for i := range used.Items {
		u := &used.Items[i]
		n := slices.IndexFunc(nodes.Items, func(n v1.Node) bool { return n.Name == u.Name })
		if n < 0 || name != "" && name != u.Name {
			continue
		}
		has := nodes.Items[n].Status.Allocatable
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", u.Name, cores(u.Usage.Cpu()), share(u.Usage.Cpu(), has.Cpu()), bytesOf(u.Usage.Memory()), share(u.Usage.Memory(), has.Memory()))
	}
	return nil
}

func share(part, whole *quantity.Quantity) string {
	if whole.IsZero() {
		return "<unknown>"
	}
	return fmt.Sprintf("%d%%", part.MilliValue()*100/whole.MilliValue())
}

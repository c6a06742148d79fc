package ctl

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// resource finds a kind by any of its names.
func (c *Client) resource(ctx context.Context, name string) (metav1.APIResource, error) {
	if c.kinds == nil {
		var list metav1.APIResourceList
		if err := c.get(ctx, call{path: "/api/v1"}, &list); err != nil {
			return metav1.APIResource{}, err
		}
		c.kinds = slices.DeleteFunc(list.APIResources, func(r metav1.APIResource) bool { return strings.Contains(r.Name, "/") })
	}
	asked := strings.TrimSuffix(strings.ToLower(name), ".v1")
	for _, k := range c.kinds {
		if asked == k.Name || asked == k.SingularName || slices.Contains(k.ShortNames, asked) || asked == strings.ToLower(k.Kind) {
			return k, nil
		}
	}
	return metav1.APIResource{}, fmt.Errorf("the server doesn't have a resource type %q", name)
}

// A Scope is where objects are looked for.
type Scope struct {
	Namespace     string
	AllNamespaces bool
	Labels        string
	Fields        string
}

func (s Scope) query() url.Values {
	q := url.Values{}
	if s.Labels != "" {
		q.Set("labelSelector", s.Labels)
	}
	if s.Fields != "" {
		q.Set("fieldSelector", s.Fields)
	}
	return q
}

// A target is a kind, and one object of it unless name is empty.
type target struct {
	kind metav1.APIResource
	name string
}

// String is a target as kubectl writes it.
func (t target) String() string { return strings.ToLower(t.kind.Kind) + "/" + t.name }

// path is where the API has it.
func (t target) path(s Scope) string {
	path := "/api/v1"
	if t.kind.Namespaced && (!s.AllNamespaces || t.name != "") {
		path += "/namespaces/" + url.PathEscape(s.Namespace)
	}
	path += "/" + t.kind.Name
	if t.name != "" {
		path += "/" + url.PathEscape(t.name)
	}
	return path
}

// targets reads operands: "pods", "pods,cm", "pod web db", "pod/web cm/conf".
func (c *Client) targets(ctx context.Context, args []string) ([]target, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("you must specify the type of resource, such as pods")
	}
	var all []target
	if strings.Contains(args[0], "/") {
		for _, arg := range args {
			kind, name, ok := strings.Cut(arg, "/")
			if !ok || name == "" {
				return nil, fmt.Errorf("there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'berth get resource/<resource_name>' instead of 'berth get resource resource/<resource_name>'")
			}
			k, err := c.resource(ctx, kind)
			if err != nil {
				return nil, err
			}
			all = append(all, target{k, name})
		}
		return all, nil
	}
	for _, word := range strings.Split(args[0], ",") {
		if word == "all" {
			word = "pods" // the only kind of that category
		}
		k, err := c.resource(ctx, word)
		if err != nil {
			return nil, err
		}
		if len(args) == 1 {
			all = append(all, target{k, ""})
		}
		for _, name := range args[1:] {
			if strings.Contains(name, "/") {
				return nil, fmt.Errorf("there is no need to specify a resource type as a separate argument when passing arguments in resource/name form")
			}
			all = append(all, target{k, name})
		}
	}
	return all, nil
}

// PodName is the name of a pod in "web" or "pod/web".
func PodName(arg string) (string, error) {
	kind, name, ok := strings.Cut(arg, "/")
	if !ok {
		return arg, nil
	}
	if k := strings.ToLower(kind); name == "" || k != "pod" && k != "pods" && k != "po" {
		return "", fmt.Errorf("%q is no pod: want POD or pod/POD", arg)
	}
	return name, nil
}

func schemaOf(t target) schema.GroupResource { return schema.GroupResource{Resource: t.kind.Name} }

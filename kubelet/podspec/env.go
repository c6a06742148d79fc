package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
	"k8s.io/kubernetes/pkg/kubelet/envvars"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// variables are an environment in the making: those of envFrom, then the declared ones, each in the place where its name
// came first.
type variables struct {
	names  []string
	values map[string]string
	// services are behind all others, and found by $(NAME) from the beginning.
	services map[string]string
}

func (v *variables) set(name, value string) {
	if _, known := v.values[name]; !known {
		v.names = append(v.names, name)
	}
	v.values[name] = value
}

// expand replaces $(NAME) by the variable's value; $$(NAME) stands for $(NAME), and an unknown one for itself.
func (v *variables) expand(s string) string {
	return expansion.Expand(s, expansion.MappingFuncFor(v.values, v.services))
}

// list is the environment as the runtime is told it.
func (v *variables) list() []*cri.KeyValue {
	var out []*cri.KeyValue
	for _, name := range v.names {
		out = append(out, &cri.KeyValue{Key: name, Value: []byte(v.values[name])})
	}
	return out
}

// environment returns the container's variables.
func (n *Node) environment(pod *v1.Pod, c *v1.Container, in ContainerInputs) (*variables, error) {
	v := &variables{values: map[string]string{}, services: serviceVariables(pod, in.Services)}
	for i := range c.EnvFrom {
		if err := v.addFrom(pod, &c.EnvFrom[i], in); err != nil {
			return nil, err
		}
	}
	for i := range c.Env {
		e := &c.Env[i]
		if e.Value != "" || e.ValueFrom == nil {
			v.set(e.Name, v.expand(e.Value))
			continue
		}
		value, found, err := n.valueFrom(pod, c, e.ValueFrom, in)
		if err != nil {
			return nil, err
		}
		if found {
			v.set(e.Name, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.services)) {
		if _, declared := v.values[name]; !declared {
			v.set(name, v.services[name])
		}
	}
	return v, nil
}

// addFrom adds all keys of a ConfigMap or Secret.
func (v *variables) addFrom(pod *v1.Pod, from *v1.EnvFromSource, in ContainerInputs) error {
	all := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		cm, err := in.configMap(from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		if cm == nil {
			return err
		}
		all = cm.Data
	case from.SecretRef != nil:
		secret, err := in.secret(from.SecretRef.Name, from.SecretRef.Optional)
		if secret == nil {
			return err
		}
		for k, value := range secret.Data {
			all[k] = string(value)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		v.set(from.Prefix+k, all[k])
	}
	return nil
}

// valueFrom returns the value that a source has for a variable; none of an optional source that is not there.
func (n *Node) valueFrom(pod *v1.Pod, c *v1.Container, from *v1.EnvVarSource, in ContainerInputs) (value string, found bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = n.Field(pod, from.FieldRef, in.IPs)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = n.ResourceField(pod, c, from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := in.configMap(ref.Name, ref.Optional)
		if cm == nil {
			return "", false, err
		}
		value, found = cm.Data[ref.Key]
		return value, found, missingKey(found, ref.Optional, "couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		secret, err := in.secret(ref.Name, ref.Optional)
		if secret == nil {
			return "", false, err
		}
		data, found := secret.Data[ref.Key]
		return string(data), found, missingKey(found, ref.Optional, "couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
	case from.FileKeyRef != nil:
		return fileKey(from.FileKeyRef, in.Volumes)
	}
	return "", true, nil // validation lets no other source through
}

func missingKey(found bool, optional *bool, format string, args ...any) error {
	if found || isTrue(optional) {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// configMap returns nil without an error if there is none and none is needed.
func (in *ContainerInputs) configMap(name string, optional *bool) (*v1.ConfigMap, error) {
	if in.ConfigMap != nil {
		if cm := in.ConfigMap(name); cm != nil {
			return cm, nil
		}
	}
	if isTrue(optional) {
		return nil, nil
	}
	return nil, fmt.Errorf("configmap %q not found", name)
}

func (in *ContainerInputs) secret(name string, optional *bool) (*v1.Secret, error) {
	if in.Secret != nil {
		if s := in.Secret(name); s != nil {
			return s, nil
		}
	}
	if isTrue(optional) {
		return nil, nil
	}
	return nil, fmt.Errorf("secret %q not found", name)
}

// serviceVariables tell where the services are: those of the pod's namespace if it wants to know, and the API's always.
func serviceVariables(pod *v1.Pod, services []*v1.Service) map[string]string {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	chosen := map[string]*v1.Service{}
	for _, s := range services {
		api := s.Namespace == v1.NamespaceDefault && s.Name == "kubernetes"
		switch {
		case !v1helper.IsServiceIPSet(s):
		case api && chosen[s.Name] == nil, !api && links && s.Namespace == pod.Namespace:
			chosen[s.Name] = s
		}
	}
	out := map[string]string{}
	for _, e := range envvars.FromServices(slices.Collect(maps.Values(chosen))) {
		out[e.Name] = e.Value
	}
	return out
}

// expandAll expands each of a command's words.
func (v *variables) expandAll(words []string) []string {
	var out []string
	for _, w := range words {
		out = append(out, expansion.Expand(w, expansion.MappingFuncFor(v.values)))
	}
	return out
}

// expandPath expands a subPathExpr, in which every variable must be known and have a value.
func (v *variables) expandPath(path string) (string, error) {
	missing := sets.New[string]()
	out := expansion.Expand(path, func(name string) string {
		if v.values[name] == "" {
			missing.Insert(name)
		}
		return v.values[name]
	})
	if missing.Len() > 0 {
		return "", fmt.Errorf("missing value for %s", strings.Join(sets.List(missing), ", "))
	}
	return out, nil
}

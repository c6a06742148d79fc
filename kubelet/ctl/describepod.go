package ctl

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
)

func (d *description) pod(p *v1.Pod) {
	d.line(0, "Name:\t%s", p.Name)
	d.line(0, "Namespace:\t%s", p.Namespace)
	if p.Spec.Priority != nil {
		d.line(0, "Priority:\t%d", *p.Spec.Priority)
	}
	if p.Spec.PriorityClassName != "" {
		d.line(0, "Priority Class Name:\t%s", p.Spec.PriorityClassName)
	}
	if p.Spec.RuntimeClassName != nil && *p.Spec.RuntimeClassName != "" {
		d.line(0, "Runtime Class Name:\t%s", *p.Spec.RuntimeClassName)
	}
	if p.Spec.ServiceAccountName != "" {
		d.line(0, "Service Account:\t%s", p.Spec.ServiceAccountName)
	}
	node := "<none>"
	if p.Spec.NodeName != "" {
		node = p.Spec.NodeName + "/" + p.Status.HostIP
	}
	d.line(0, "Node:\t%s", node)
	if p.Status.StartTime != nil {
		d.line(0, "Start Time:\t%s", p.Status.StartTime.Format(time.RFC1123Z))
	}
	d.labels("Labels", p.Labels)
	d.annotations(p.Annotations)
	d.podStatus(p)
	if p.Spec.Resources != nil {
		d.line(0, "Resources:")
		d.resources(1, p.Spec.Resources)
	}
	if len(p.Spec.InitContainers) > 0 {
		d.containers("Init Containers", p, p.Spec.InitContainers, p.Status.InitContainerStatuses)
	}
	d.containers("Containers", p, p.Spec.Containers, p.Status.ContainerStatuses)
	if len(p.Spec.EphemeralContainers) > 0 {
		var all []v1.Container
		for i := range p.Spec.EphemeralContainers {
			all = append(all, v1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon))
		}
		d.containers("Ephemeral Containers", p, all, p.Status.EphemeralContainerStatuses)
	}
	d.conditions(p)
	d.volumes(p.Spec.Volumes)
	d.line(0, "QoS Class:\t%s", p.Status.QOSClass)
	d.labels("Node-Selectors", p.Spec.NodeSelector)
	d.tolerations(p.Spec.Tolerations)
}

func (d *description) podStatus(p *v1.Pod) {
	if p.DeletionTimestamp != nil && p.Status.Phase != v1.PodFailed && p.Status.Phase != v1.PodSucceeded {
		d.line(0, "Status:\tTerminating (lasts %s)", since(*p.DeletionTimestamp))
		if p.DeletionGracePeriodSeconds != nil {
			d.line(0, "Termination Grace Period:\t%ds", *p.DeletionGracePeriodSeconds)
		}
	} else {
		d.line(0, "Status:\t%s", p.Status.Phase)
	}
	if p.Status.Reason != "" {
		d.line(0, "Reason:\t%s", p.Status.Reason)
	}
	if p.Status.Message != "" {
		d.line(0, "Message:\t%s", p.Status.Message)
	}
	if p.Spec.SecurityContext != nil {
		d.seccomp(0, p.Spec.SecurityContext.SeccompProfile)
	}
	d.line(0, "IP:\t%s", p.Status.PodIP)
	if len(p.Status.PodIPs) == 0 {
		d.line(0, "IPs:\t<none>")
		return
	}
	d.line(0, "IPs:")
	for _, ip := range p.Status.PodIPs {
		d.line(1, "IP:\t%s", ip.IP)
	}
}

func (d *description) seccomp(level int, s *v1.SeccompProfile) {
	if s == nil {
		return
	}
	d.line(level, "SeccompProfile:\t%s", s.Type)
	if s.LocalhostProfile != nil {
		d.line(level+1, "LocalhostProfile:\t%s", *s.LocalhostProfile)
	}
}

func (d *description) containers(title string, p *v1.Pod, all []v1.Container, statuses []v1.ContainerStatus) {
	d.line(0, "%s:", title)
	for i := range all {
		c := &all[i]
		var status *v1.ContainerStatus
		if n := slices.IndexFunc(statuses, func(s v1.ContainerStatus) bool { return s.Name == c.Name }); n >= 0 {
			status = &statuses[n]
		}
		d.container(p, c, status)
	}
}

func (d *description) container(p *v1.Pod, c *v1.Container, status *v1.ContainerStatus) {
	d.line(1, "%s:", c.Name)
	if status != nil {
		d.line(2, "Container ID:\t%s", status.ContainerID)
	}
	d.line(2, "Image:\t%s", c.Image)
	if status != nil {
		d.line(2, "Image ID:\t%s", status.ImageID)
	}
	d.ports(c.Ports)
	if c.SecurityContext != nil {
		d.seccomp(2, c.SecurityContext.SeccompProfile)
	}
	d.words("Command", c.Command)
	d.words("Args", c.Args)
	if status != nil {
		d.state("State", status.State)
		if status.LastTerminationState.Terminated != nil {
			d.state("Last State", status.LastTerminationState)
		}
		d.line(2, "Ready:\t%s", map[bool]string{true: "True", false: "False"}[status.Ready])
		d.line(2, "Restart Count:\t%d", status.RestartCount)
	}
	d.resources(2, &c.Resources)
	for _, probe := range []struct {
		name string
		*v1.Probe
	}{{"Liveness", c.LivenessProbe}, {"Readiness", c.ReadinessProbe}, {"Startup", c.StartupProbe}} {
		if probe.Probe != nil {
			d.line(2, "%s:\t%s", probe.name, probeText(probe.Probe))
		}
	}
	d.environment(p, c)
	d.mounts(c)
}

func (d *description) ports(all []v1.ContainerPort) {
	var ports, hostPorts []string
	for _, p := range all {
		port := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
		host := fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
		if p.Name != "" {
			port, host = port+" ("+p.Name+")", host+" ("+p.Name+")"
		}
		ports, hostPorts = append(ports, port), append(hostPorts, host)
	}
	plural := ""
	if len(all) > 1 {
		plural = "s"
	}
	d.line(2, "Port%s:\t%s", plural, none(strings.Join(ports, ", ")))
	d.line(2, "Host Port%s:\t%s", plural, none(strings.Join(hostPorts, ", ")))
}

func (d *description) words(title string, all []string) {
	if len(all) == 0 {
		return
	}
	d.line(2, "%s:", title)
	for _, word := range all {
		for _, line := range strings.Split(word, "\n") {
			d.line(3, "%s", line)
		}
	}
}

func (d *description) state(title string, s v1.ContainerState) {
	switch {
	case s.Running != nil:
		d.line(2, "%s:\tRunning", title)
		d.line(3, "Started:\t%s", s.Running.StartedAt.Format(time.RFC1123Z))
	case s.Terminated != nil:
		d.line(2, "%s:\tTerminated", title)
		if s.Terminated.Reason != "" {
			d.line(3, "Reason:\t%s", s.Terminated.Reason)
		}
		if s.Terminated.Message != "" {
			d.line(3, "Message:\t%s", s.Terminated.Message)
		}
		d.line(3, "Exit Code:\t%d", s.Terminated.ExitCode)
		if s.Terminated.Signal > 0 {
			d.line(3, "Signal:\t%d", s.Terminated.Signal)
		}
		d.line(3, "Started:\t%s", s.Terminated.StartedAt.Format(time.RFC1123Z))
		d.line(3, "Finished:\t%s", s.Terminated.FinishedAt.Format(time.RFC1123Z))
	default:
		d.line(2, "%s:\tWaiting", title)
		if s.Waiting != nil && s.Waiting.Reason != "" {
			d.line(3, "Reason:\t%s", s.Waiting.Reason)
		}
	}
}

func (d *description) resources(level int, r *v1.ResourceRequirements) {
	for _, part := range []struct {
		title string
		list  v1.ResourceList
	}{{"Limits", r.Limits}, {"Requests", r.Requests}} {
		if len(part.list) == 0 {
			continue
		}
		d.line(level, "%s:", part.title)
		for _, name := range slices.Sorted(maps.Keys(part.list)) {
			q := part.list[name]
			d.line(level+1, "%s:\t%s", name, q.String())
		}
	}
}

func probeText(p *v1.Probe) string {
	attributes := fmt.Sprintf("delay=%ds timeout=%ds period=%ds #success=%d #failure=%d", p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold)
	switch {
	case p.Exec != nil:
		return fmt.Sprintf("exec %v %s", p.Exec.Command, attributes)
	case p.HTTPGet != nil:
		return fmt.Sprintf("http-get %s://%s%s %s", strings.ToLower(string(p.HTTPGet.Scheme)), net.JoinHostPort(p.HTTPGet.Host, p.HTTPGet.Port.String()), p.HTTPGet.Path, attributes)
	case p.TCPSocket != nil:
		return fmt.Sprintf("tcp-socket %s:%s %s", p.TCPSocket.Host, p.TCPSocket.Port.String(), attributes)
	case p.GRPC != nil:
		service := ""
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		return fmt.Sprintf("grpc <pod>:%d %s %s", p.GRPC.Port, service, attributes)
	}
	return "unknown " + attributes
}

func (d *description) environment(p *v1.Pod, c *v1.Container) {
	if len(c.EnvFrom) > 0 {
		d.line(2, "Environment Variables from:")
		for _, e := range c.EnvFrom {
			name, from, optional := "", "", false
			if e.ConfigMapRef != nil {
				name, from, optional = e.ConfigMapRef.Name, "ConfigMap", isSet(e.ConfigMapRef.Optional)
			} else if e.SecretRef != nil {
				name, from, optional = e.SecretRef.Name, "Secret", isSet(e.SecretRef.Optional)
			}
			if e.Prefix != "" {
				from += " with prefix '" + e.Prefix + "'"
			}
			d.line(3, "%s\t%s\tOptional: %t", name, from, optional)
		}
	}
	if len(c.Env) == 0 {
		d.line(2, "Environment:\t<none>")
		return
	}
	d.line(2, "Environment:")
	for _, e := range c.Env {
		switch from := e.ValueFrom; {
		case from == nil:
			d.line(3, "%s:\t%s", e.Name, strings.ReplaceAll(e.Value, "\n", "\n      \t"))
		case from.FieldRef != nil:
			value, _ := fieldpath.ExtractFieldPathAsString(p, from.FieldRef.FieldPath) // what only the status has is not shown
			d.line(3, "%s:\t%s (%s:%s)", e.Name, value, cmp.Or(from.FieldRef.APIVersion, "v1"), from.FieldRef.FieldPath)
		case from.ResourceFieldRef != nil:
			d.line(3, "%s:\t%s (%s)", e.Name, resourceField(c, from.ResourceFieldRef), from.ResourceFieldRef.Resource)
		case from.SecretKeyRef != nil:
			d.line(3, "%s:\t<set to the key '%s' in secret '%s'>\tOptional: %t", e.Name, from.SecretKeyRef.Key, from.SecretKeyRef.Name, isSet(from.SecretKeyRef.Optional))
		case from.ConfigMapKeyRef != nil:
			d.line(3, "%s:\t<set to the key '%s' of config map '%s'>\tOptional: %t", e.Name, from.ConfigMapKeyRef.Key, from.ConfigMapKeyRef.Name, isSet(from.ConfigMapKeyRef.Optional))
		}
	}
}

// resourceField is a limit or request in the units that the container sees.
func resourceField(c *v1.Container, ref *v1.ResourceFieldSelector) string {
	kind, name, _ := strings.Cut(ref.Resource, ".")
	list := c.Resources.Limits
	if kind == "requests" {
		list = c.Resources.Requests
	}
	q, ok := list[v1.ResourceName(name)]
	if !ok {
		if kind == "limits" {
			return "node allocatable"
		}
		return "0"
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = quantity.MustParse("1")
	}
	if name == string(v1.ResourceCPU) {
		return fmt.Sprint((q.MilliValue() + divisor.MilliValue() - 1) / divisor.MilliValue())
	}
	return fmt.Sprint((q.Value() + divisor.Value() - 1) / divisor.Value())
}

func (d *description) mounts(c *v1.Container) {
	if len(c.VolumeMounts) == 0 {
		d.line(2, "Mounts:\t<none>")
		return
	}
	d.line(2, "Mounts:")
	sorted := slices.SortedFunc(slices.Values(c.VolumeMounts), func(a, b v1.VolumeMount) int { return strings.Compare(a.MountPath, b.MountPath) })
	for _, m := range sorted {
		how := "rw"
		if m.ReadOnly {
			how = "ro"
		}
		if m.SubPath != "" {
			how += fmt.Sprintf(",path=%q", m.SubPath)
		}
		d.line(3, "%s from %s (%s)", m.MountPath, m.Name, how)
	}
}

func (d *description) conditions(p *v1.Pod) {
	if len(p.Spec.ReadinessGates) > 0 {
		d.line(0, "Readiness Gates:\n  Type\tStatus")
		for _, g := range p.Spec.ReadinessGates {
			status := "<none>"
			for _, c := range p.Status.Conditions {
				if c.Type == g.ConditionType {
					status = string(c.Status)
				}
			}
			d.line(1, "%s \t%s ", g.ConditionType, status)
		}
	}
	if len(p.Status.Conditions) == 0 {
		return
	}
	d.line(0, "Conditions:\n  Type\tStatus")
	for _, c := range p.Status.Conditions {
		d.line(1, "%s \t%s ", c.Type, c.Status)
	}
}

func (d *description) tolerations(all []v1.Toleration) {
	if len(all) == 0 {
		d.line(0, "Tolerations:\t<none>")
		return
	}
	for i, t := range all {
		text := t.Key
		if t.Value != "" {
			text += "=" + t.Value
		}
		if t.Effect != "" {
			text += ":" + string(t.Effect)
		}
		if t.Operator == v1.TolerationOpExists && t.Value == "" {
			text = strings.TrimPrefix(text+" op=Exists", " ")
		}
		if t.TolerationSeconds != nil {
			text += fmt.Sprintf(" for %ds", *t.TolerationSeconds)
		}
		head := ""
		if i == 0 {
			head = "Tolerations:"
		}
		d.line(0, "%s\t%s", head, text)
	}
}

func (d *description) volumes(all []v1.Volume) {
	if len(all) == 0 {
		d.line(0, "Volumes:\t<none>")
		return
	}
	d.line(0, "Volumes:")
	for i := range all {
		d.line(1, "%s:", all[i].Name)
		d.volume(&all[i].VolumeSource)
	}
}

// volume shows of what kind a volume is, and the lines below that.
func (d *description) volume(s *v1.VolumeSource) {
	show := func(kind string, pairs ...any) {
		d.line(2, "Type:\t%s", kind)
		for i := 0; i < len(pairs); i += 2 {
			d.line(2, "%s:\t%v", pairs[i], pairs[i+1])
		}
	}
	switch {
	case s.HostPath != nil:
		kind := "<none>"
		if s.HostPath.Type != nil {
			kind = string(*s.HostPath.Type)
		}
		show("HostPath (bare host directory volume)", "Path", s.HostPath.Path, "HostPathType", kind)
	case s.EmptyDir != nil:
		limit := "<unset>"
		if s.EmptyDir.SizeLimit != nil && !s.EmptyDir.SizeLimit.IsZero() {
			limit = s.EmptyDir.SizeLimit.String()
		}
		show("EmptyDir (a temporary directory that shares a pod's lifetime)", "Medium", s.EmptyDir.Medium, "SizeLimit", limit)
	case s.Secret != nil:
		show("Secret (a volume populated by a Secret)", "SecretName", s.Secret.SecretName, "Optional", isSet(s.Secret.Optional))
	case s.ConfigMap != nil:
		show("ConfigMap (a volume populated by a ConfigMap)", "Name", s.ConfigMap.Name, "Optional", isSet(s.ConfigMap.Optional))
	case s.PersistentVolumeClaim != nil:
		show("PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)",
			"ClaimName", s.PersistentVolumeClaim.ClaimName, "ReadOnly", s.PersistentVolumeClaim.ReadOnly)
	case s.NFS != nil:
		show("NFS (an NFS mount that lasts the lifetime of a pod)", "Server", s.NFS.Server, "Path", s.NFS.Path, "ReadOnly", s.NFS.ReadOnly)
	case s.Image != nil:
		show("Image (a container image or OCI artifact)", "Reference", s.Image.Reference, "PullPolicy", s.Image.PullPolicy)
	case s.DownwardAPI != nil:
		show("DownwardAPI (a volume populated by information about the pod)")
		d.line(2, "Items:")
		for _, item := range s.DownwardAPI.Items {
			if item.FieldRef != nil {
				d.line(3, "%s -> %s", item.FieldRef.FieldPath, item.Path)
			}
			if item.ResourceFieldRef != nil {
				d.line(3, "%s -> %s", item.ResourceFieldRef.Resource, item.Path)
			}
		}
	case s.Projected != nil:
		show("Projected (a volume that contains injected data from multiple sources)")
		for _, p := range s.Projected.Sources {
			switch {
			case p.Secret != nil:
				d.line(2, "SecretName:\t%s\n    Optional:\t%t", p.Secret.Name, isSet(p.Secret.Optional))
			case p.ConfigMap != nil:
				d.line(2, "ConfigMapName:\t%s\n    Optional:\t%t", p.ConfigMap.Name, isSet(p.ConfigMap.Optional))
			case p.DownwardAPI != nil:
				d.line(2, "DownwardAPI:\ttrue")
			}
		}
	default:
		d.line(1, "<unknown>")
	}
}

func isSet(b *bool) bool { return b != nil && *b }

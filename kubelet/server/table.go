package server

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/berth-node/berth/kubelet/feed"
)

// The tables are those of Kubernetes' API server (pkg/printers/internalversion), whose columns users and scripts know.

// columns makes the columns of a table of their names. One that begins with + is for -o wide.
func columns(names ...string) []metav1.TableColumnDefinition {
	var all []metav1.TableColumnDefinition
	for _, name := range names {
		c := metav1.TableColumnDefinition{Type: "string"}
		c.Name = strings.TrimPrefix(name, "+")
		if c.Name != name {
			c.Priority = 1
		}
		if c.Name == "Name" {
			c.Format = "name"
		}
		all = append(all, c)
	}
	return all
}

// age is how long ago a moment is, as kubectl has it.
func age(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

// metaFields can be selected by of every kind.
func metaFields(o feed.Object) fields.Set {
	return fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
}

var podColumns = columns("Name", "Ready", "Status", "Restarts", "Age", "+IP", "+Node", "+Nominated Node", "+Readiness Gates")

func podRow(o feed.Object, now time.Time) []any {
	pod := o.(*v1.Pod)
	s := summarize(pod)
	restarts := strconv.Itoa(s.restarts)
	if s.restarts != 0 && !s.lastRestart.IsZero() {
		restarts = fmt.Sprintf("%d (%s ago)", s.restarts, age(s.lastRestart, now))
	}
	return []any{
		pod.Name, fmt.Sprintf("%d/%d", s.ready, s.total), s.reason, restarts, age(pod.CreationTimestamp, now),
		orNone(pod.Status.PodIP), orNone(pod.Spec.NodeName), orNone(pod.Status.NominatedNodeName), readinessGates(pod),
	}
}

func orNone(s string) string { return cmp.Or(s, "<none>") }

func readinessGates(pod *v1.Pod) string {
	if len(pod.Spec.ReadinessGates) == 0 {
		return "<none>"
	}
	met := 0
	for _, gate := range pod.Spec.ReadinessGates {
		if isTrueCondition(pod, gate.ConditionType) {
			met++
		}
	}
	return fmt.Sprintf("%d/%d", met, len(pod.Spec.ReadinessGates))
}

func isTrueCondition(pod *v1.Pod, t v1.PodConditionType) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == t {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// A summary is a pod in a few words.
type summary struct {
	reason       string
	ready, total int
	restarts     int
	lastRestart  metav1.Time
}

func summarize(pod *v1.Pod) summary {
	s := summary{reason: cmp.Or(pod.Status.Reason, string(pod.Status.Phase)), total: len(pod.Spec.Containers)}
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodScheduled && c.Reason == v1.PodReasonSchedulingGated {
			s.reason = v1.PodReasonSchedulingGated
		}
	}
	sidecars := map[string]bool{}
	for i := range pod.Spec.InitContainers {
		if p := pod.Spec.InitContainers[i].RestartPolicy; p != nil && *p == v1.ContainerRestartPolicyAlways {
			sidecars[pod.Spec.InitContainers[i].Name] = true
			s.total++
		}
	}
	var ofSidecars summary
	initializing := s.initialize(pod, sidecars, &ofSidecars)
	if !initializing || isTrueCondition(pod, v1.PodInitialized) {
		s.restarts, s.lastRestart = ofSidecars.restarts, ofSidecars.lastRestart
		s.run(pod)
	}
	if pod.DeletionTimestamp != nil {
		switch {
		case pod.Status.Reason == "NodeLost":
			s.reason = "Unknown"
		case pod.Status.Phase != v1.PodSucceeded && pod.Status.Phase != v1.PodFailed:
			s.reason = "Terminating"
		}
	}
	return s
}

// restarted counts the restarts of a container.
func (s *summary) restarted(c *v1.ContainerStatus) {
	s.restarts += int(c.RestartCount)
	if t := c.LastTerminationState.Terminated; t != nil && s.lastRestart.Before(&t.FinishedAt) {
		s.lastRestart = t.FinishedAt
	}
}

// initialize looks at the init containers, and reports whether one of them is not done. Their reasons are the pod's then.
func (s *summary) initialize(pod *v1.Pod, sidecars map[string]bool, ofSidecars *summary) bool {
	for i := range pod.Status.InitContainerStatuses {
		c := &pod.Status.InitContainerStatuses[i]
		s.restarted(c)
		if sidecars[c.Name] {
			ofSidecars.restarted(c)
		}
		switch {
		case c.State.Terminated != nil && c.State.Terminated.ExitCode == 0:
			continue
		case sidecars[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
			continue
		case c.State.Terminated != nil:
			s.reason = "Init:" + terminated(c.State.Terminated)
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
			s.reason = "Init:" + c.State.Waiting.Reason
		default:
			s.reason = fmt.Sprintf("Init:%d/%d", i, len(pod.Spec.InitContainers))
		}
		return true
	}
	return false
}

func terminated(t *v1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

// run looks at the containers proper. The first one that waits or has ended gives the pod its reason.
func (s *summary) run(pod *v1.Pod) {
	running, failed := false, ""
	for i := len(pod.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &pod.Status.ContainerStatuses[i]
		s.restarted(c)
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			s.reason = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s.reason = terminated(c.State.Terminated)
			if c.State.Terminated.ExitCode != 0 {
				failed = s.reason
			}
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	if s.reason != "Completed" {
		return
	}
	switch {
	case running && isTrueCondition(pod, v1.PodReady):
		s.reason = "Running"
	case failed != "":
		s.reason = failed
	case running:
		s.reason = "NotReady"
	}
}

// podFields can be selected by, as in a cluster.
func podFields(o feed.Object) fields.Set {
	pod := o.(*v1.Pod)
	set := metaFields(o)
	set["spec.nodeName"] = pod.Spec.NodeName
	set["spec.restartPolicy"] = string(pod.Spec.RestartPolicy)
	set["spec.schedulerName"] = pod.Spec.SchedulerName
	set["spec.serviceAccountName"] = pod.Spec.ServiceAccountName
	set["spec.hostNetwork"] = strconv.FormatBool(pod.Spec.HostNetwork)
	set["status.phase"] = string(pod.Status.Phase)
	set["status.podIP"] = pod.Status.PodIP
	set["status.nominatedNodeName"] = pod.Status.NominatedNodeName
	return set
}

var configMapColumns = columns("Name", "Data", "Age")

func configMapRow(o feed.Object, now time.Time) []any {
	m := o.(*v1.ConfigMap)
	return []any{m.Name, len(m.Data) + len(m.BinaryData), age(m.CreationTimestamp, now)}
}

var secretColumns = columns("Name", "Type", "Data", "Age")

func secretRow(o feed.Object, now time.Time) []any {
	s := o.(*v1.Secret)
	return []any{s.Name, string(s.Type), len(s.Data), age(s.CreationTimestamp, now)}
}

func secretFields(o feed.Object) fields.Set {
	set := metaFields(o)
	set["type"] = string(o.(*v1.Secret).Type)
	return set
}

var claimColumns = columns("Name", "Status", "Volume", "Capacity", "Access Modes", "StorageClass", "VolumeAttributesClass", "Age", "+VolumeMode")

func claimRow(o feed.Object, now time.Time) []any {
	c := o.(*v1.PersistentVolumeClaim)
	phase, capacity, modes, class, mode := string(c.Status.Phase), "", "", "", "<unset>"
	if c.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	if c.Spec.VolumeName != "" {
		storage := c.Status.Capacity[v1.ResourceStorage]
		capacity, modes = storage.String(), accessModes(c.Status.AccessModes)
	}
	if c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	if c.Spec.VolumeMode != nil {
		mode = string(*c.Spec.VolumeMode)
	}
	attributes := "<unset>"
	if c.Spec.VolumeAttributesClassName != nil {
		attributes = *c.Spec.VolumeAttributesClassName
	}
	return []any{c.Name, phase, c.Spec.VolumeName, capacity, modes, class, attributes, age(c.CreationTimestamp, now), mode}
}

var volumeColumns = columns("Name", "Capacity", "Access Modes", "Reclaim Policy", "Status", "Claim", "StorageClass", "VolumeAttributesClass", "Reason", "Age", "+VolumeMode")

func volumeRow(o feed.Object, now time.Time) []any {
	v := o.(*v1.PersistentVolume)
	capacity := v.Spec.Capacity[v1.ResourceStorage]
	claim, class, attributes, mode := "", v.Spec.StorageClassName, "<unset>", "<unset>"
	if r := v.Spec.ClaimRef; r != nil {
		claim = r.Namespace + "/" + r.Name
	}
	if old, ok := v.Annotations[v1.BetaStorageClassAnnotation]; ok {
		class = old
	}
	if v.Spec.VolumeAttributesClassName != nil {
		attributes = *v.Spec.VolumeAttributesClassName
	}
	if v.Spec.VolumeMode != nil {
		mode = string(*v.Spec.VolumeMode)
	}
	return []any{
		v.Name, capacity.String(), accessModes(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy), string(v.Status.Phase), claim, class,
		attributes, v.Status.Reason, age(v.CreationTimestamp, now), mode,
	}
}

func accessModes(modes []v1.PersistentVolumeAccessMode) string {
	short := map[v1.PersistentVolumeAccessMode]string{
		v1.ReadWriteOnce: "RWO", v1.ReadOnlyMany: "ROX", v1.ReadWriteMany: "RWX", v1.ReadWriteOncePod: "RWOP",
	}
	var all []string
	for _, m := range modes {
		all = append(all, short[m])
	}
	return strings.Join(all, ",")
}

var eventColumns = columns("Last Seen", "Type", "Reason", "Object", "+Subobject", "+Source", "Message", "+First Seen", "+Count", "+Name")

func eventRow(o feed.Object, now time.Time) []any {
	e := o.(*v1.Event)
	object := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		object += "/" + e.InvolvedObject.Name
	}
	source := e.Source.Component
	if e.Source.Host != "" {
		source += ", " + e.Source.Host
	}
	return []any{
		age(e.LastTimestamp, now), e.Type, e.Reason, object, e.InvolvedObject.FieldPath, source, strings.TrimSpace(e.Message),
		age(e.FirstTimestamp, now), int(e.Count), e.Name,
	}
}

func eventFields(o feed.Object) fields.Set {
	e := o.(*v1.Event)
	set := metaFields(o)
	set["involvedObject.kind"] = e.InvolvedObject.Kind
	set["involvedObject.namespace"] = e.InvolvedObject.Namespace
	set["involvedObject.name"] = e.InvolvedObject.Name
	set["involvedObject.uid"] = string(e.InvolvedObject.UID)
	set["involvedObject.apiVersion"] = e.InvolvedObject.APIVersion
	set["involvedObject.resourceVersion"] = e.InvolvedObject.ResourceVersion
	set["involvedObject.fieldPath"] = e.InvolvedObject.FieldPath
	set["reason"] = e.Reason
	set["reportingComponent"] = e.ReportingController
	set["source"] = e.Source.Component
	set["type"] = e.Type
	return set
}

var namespaceColumns = columns("Name", "Status", "Age")

func namespaceRow(o feed.Object, now time.Time) []any {
	n := o.(*v1.Namespace)
	return []any{n.Name, string(n.Status.Phase), age(n.CreationTimestamp, now)}
}

var nodeColumns = columns("Name", "Status", "Roles", "Age", "Version", "+Internal-IP", "+External-IP", "+OS-Image", "+Kernel-Version", "+Container-Runtime")

func nodeRow(o feed.Object, now time.Time) []any {
	n := o.(*v1.Node)
	ready, address := "Unknown", "<none>"
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeReady {
			ready = "NotReady"
			if c.Status == v1.ConditionTrue {
				ready = "Ready"
			}
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type == v1.NodeInternalIP {
			address = a.Address
			break
		}
	}
	info := &n.Status.NodeInfo
	return []any{
		n.Name, ready, "<none>", age(n.CreationTimestamp, now), info.KubeletVersion, address, "<none>", cmp.Or(info.OSImage, "<unknown>"),
		fmt.Sprintf("%s (%s)", cmp.Or(info.KernelVersion, "<unknown>"), info.Architecture), cmp.Or(info.ContainerRuntimeVersion, "<unknown>"),
	}
}

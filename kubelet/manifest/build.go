package manifest

import (
	"context"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/api/persistentvolume"
	"k8s.io/kubernetes/pkg/api/persistentvolumeclaim"
	podapi "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	"k8s.io/kubernetes/pkg/features"
	kjson "sigs.k8s.io/json"
)

// scheme has upstream's defaults, and the ways between the objects as they are written and as they are validated.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(s))
	utilruntime.Must(core.AddToScheme(s))
	return s
}()

// build makes the object from its source, with defaults, and returns its internal form.
func (o *Object) build(source []byte) (runtime.Object, error) {
	var written metav1.Object
	var internal runtime.Object
	switch o.Kind {
	case Pod:
		o.Pod = &v1.Pod{}
		written, internal = o.Pod, &core.Pod{}
	case ConfigMap:
		o.ConfigMap = &v1.ConfigMap{}
		written, internal = o.ConfigMap, &core.ConfigMap{}
	case Secret:
		o.Secret = &v1.Secret{}
		written, internal = o.Secret, &core.Secret{}
	case Claim:
		o.Claim = &v1.PersistentVolumeClaim{}
		written, internal = o.Claim, &core.PersistentVolumeClaim{}
	case Volume:
		o.Volume = &v1.PersistentVolume{}
		written, internal = o.Volume, &core.PersistentVolume{}
	default:
		return nil, fmt.Errorf("unknown kind %q", o.Kind)
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(source, written); err != nil {
		return nil, err
	}
	if written.GetNamespace() == "" && o.Kind.Namespaced() {
		written.SetNamespace(metav1.NamespaceDefault)
	}
	o.Namespace, o.Name = written.GetNamespace(), written.GetName()
	if o.Pod != nil {
		resolvePriority(o.Pod)
	}
	scheme.Default(written.(runtime.Object))
	if err := scheme.Convert(written, internal, nil); err != nil {
		return nil, err
	}
	// Back again: deprecated fields and their successors agree in the internal form only, and stringData is data there.
	reflect.ValueOf(written).Elem().SetZero()
	return internal, scheme.Convert(internal, written, nil)
}

// The priority classes that every cluster has. Others are objects, which a node by itself has not: a pod says its priority.
var priorityClasses = map[string]int32{
	scheduling.SystemClusterCritical: scheduling.SystemCriticalPriority,
	scheduling.SystemNodeCritical:    scheduling.SystemCriticalPriority + 1000,
}

// resolvePriority does what a cluster's admission of pods does.
func resolvePriority(pod *v1.Pod) {
	if value, ok := priorityClasses[pod.Spec.PriorityClassName]; ok && pod.Spec.Priority == nil {
		pod.Spec.Priority = &value
	}
}

// validate returns the faults of an object by upstream's rules and by berth's own, and upstream's warnings.
func validate(object runtime.Object) (warnings []string, faults field.ErrorList) {
	switch o := object.(type) {
	case *core.Pod:
		faults = validatePod(o)
		if len(faults) == 0 {
			warnings = podapi.GetWarningsForPod(context.Background(), o, nil)
		}
	case *core.ConfigMap:
		faults = validation.ValidateConfigMap(o)
	case *core.Secret:
		faults = validation.ValidateSecret(o)
	case *core.PersistentVolumeClaim:
		faults = validateClaim(o)
		warnings = persistentvolumeclaim.GetWarningsForPersistentVolumeClaim(o)
	case *core.PersistentVolume:
		faults = validateVolume(o)
		warnings = persistentvolume.GetWarningsForPersistentVolume(o)
	}
	return warnings, faults
}

func validatePod(pod *core.Pod) field.ErrorList {
	faults := dropped(pod)
	options := podapi.GetValidationOptionsFromPodSpecAndMeta(&pod.Spec, nil, &pod.ObjectMeta, nil)
	for _, f := range validation.ValidatePodCreate(pod, options) {
		// Where there is an API server, they are added to a pod that runs; here its manifest is edited, for want of one.
		if f.Type == field.ErrorTypeForbidden && f.Field == "spec.ephemeralContainers" && f.Detail == "cannot be set on create" {
			continue
		}
		faults = append(faults, f)
	}
	spec := field.NewPath("spec")
	if class := pod.Spec.PriorityClassName; class != "" {
		value, known := priorityClasses[class]
		switch {
		case !known:
			faults = append(faults, field.Invalid(spec.Child("priorityClassName"), class,
				"there are only "+scheduling.SystemClusterCritical+" and "+scheduling.SystemNodeCritical+": any other priority is said by spec.priority"))
		case *pod.Spec.Priority != value:
			faults = append(faults, field.Invalid(spec.Child("priority"), *pod.Spec.Priority, fmt.Sprintf("priorityClassName %s is %d", class, value)))
		}
	}
	if pod.Spec.OS != nil && pod.Spec.OS.Name != core.Linux {
		faults = append(faults, field.NotSupported(spec.Child("os", "name"), pod.Spec.OS.Name, []core.OSName{core.Linux}))
	}
	return append(faults, securityAnnotations(pod)...)
}

// dropped are the fields that upstream leaves out without a word, since what they switch on is switched off in this version.
func dropped(pod *core.Pod) (faults field.ErrorList) {
	left := pod.DeepCopy()
	podapi.DropDisabledPodFields(left, nil)
	missing(reflect.ValueOf(pod.Spec), reflect.ValueOf(left.Spec), field.NewPath("spec"), func(at *field.Path) {
		faults = append(faults, field.Forbidden(at, "not supported: it is an alpha feature of Kubernetes, off by default"))
	})
	return faults
}

// missing calls found for what is in a but not in b.
func missing(a, b reflect.Value, at *field.Path, found func(*field.Path)) {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	switch {
	case reflect.DeepEqual(a.Interface(), b.Interface()):
	case a.Kind() == reflect.Struct && a.NumField() > 0 && a.Type().Field(0).IsExported():
		for i := range a.NumField() {
			name := a.Type().Field(i).Name
			inner := at.Child(strings.ToLower(name[:1]) + name[1:])
			if a.Type().Field(i).Anonymous {
				inner = at
			}
			missing(a.Field(i), b.Field(i), inner, found)
		}
	case a.Kind() == reflect.Slice && a.Len() == b.Len():
		for i := range a.Len() {
			missing(a.Index(i), b.Index(i), at.Index(i), found)
		}
	default:
		found(at)
	}
}

// securityAnnotations refuses what once was the way to confine a container: nothing reads it any more, and the container would
// run less confined than was meant.
func securityAnnotations(pod *core.Pod) (faults field.ErrorList) {
	for key := range pod.Annotations {
		at := field.NewPath("metadata", "annotations").Key(key)
		switch {
		case strings.HasPrefix(key, v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix):
			faults = append(faults, field.Forbidden(at, "not supported: use securityContext.appArmorProfile"))
		case key == v1.SeccompPodAnnotationKey, strings.HasPrefix(key, v1.SeccompContainerAnnotationKeyPrefix):
			faults = append(faults, field.Forbidden(at, "not supported: use securityContext.seccompProfile"))
		}
	}
	slices.SortFunc(faults, func(a, b *field.Error) int { return strings.Compare(a.Field, b.Field) })
	return faults
}

func validateClaim(claim *core.PersistentVolumeClaim) field.ErrorList {
	faults := validation.ValidatePersistentVolumeClaim(claim, validation.ValidationOptionsForPersistentVolumeClaimCreate())
	if mode := claim.Spec.VolumeMode; mode != nil && *mode != core.PersistentVolumeFilesystem {
		faults = append(faults, field.NotSupported(field.NewPath("spec", "volumeMode"), *mode, []core.PersistentVolumeMode{core.PersistentVolumeFilesystem}))
	}
	return faults
}

// validateVolume refuses what this node would not do with a PersistentVolume.
func validateVolume(v *core.PersistentVolume) field.ErrorList {
	spec := field.NewPath("spec")
	faults := validation.ValidatePersistentVolume(v, validation.ValidationOptionsForPersistentVolume(v, nil))
	if mode := v.Spec.VolumeMode; mode != nil && *mode != core.PersistentVolumeFilesystem {
		faults = append(faults, field.NotSupported(spec.Child("volumeMode"), *mode, []core.PersistentVolumeMode{core.PersistentVolumeFilesystem}))
	}
	if p := v.Spec.PersistentVolumeReclaimPolicy; p == core.PersistentVolumeReclaimDelete || p == core.PersistentVolumeReclaimRecycle {
		faults = append(faults, field.Forbidden(spec.Child("persistentVolumeReclaimPolicy"),
			fmt.Sprintf("not supported: %s would remove what berth has not made; only Retain is honoured", p)))
	}
	if len(v.Spec.MountOptions) > 0 && v.Spec.NFS == nil {
		faults = append(faults, field.Forbidden(spec.Child("mountOptions"), "may not specify mount options for this volume type"))
	}
	return faults
}

var firstField = regexp.MustCompile(`^[a-z][A-Za-z]*[.\[][^ ]*[^ :]`)

// fieldIn returns the field with which a warning of upstream begins.
func fieldIn(warning string) string { return firstField.FindString(warning) }

func init() {
	// An alpha feature, without which upstream drops the field. There is no control plane here that would have to know it too.
	utilruntime.Must(utilfeature.DefaultMutableFeatureGate.SetFromMap(map[string]bool{string(features.ContainerStopSignals): true}))
}

// CheckUpdate returns why an object may not become another one of the same key: an immutable ConfigMap or Secret, the type of a
// Secret, most of a claim, and where a PersistentVolume is, stay as they are until they are deleted. A Pod may become anything: it is made anew where it has to
// be.
func CheckUpdate(was, is Object) error {
	var faults field.ErrorList
	switch {
	case was.ConfigMap != nil && is.ConfigMap != nil:
		from, to := internal(was.ConfigMap, &core.ConfigMap{}), internal(is.ConfigMap, &core.ConfigMap{})
		alike(&from.ObjectMeta, &to.ObjectMeta)
		faults = validation.ValidateConfigMapUpdate(to, from)
	case was.Secret != nil && is.Secret != nil:
		from, to := internal(was.Secret, &core.Secret{}), internal(is.Secret, &core.Secret{})
		alike(&from.ObjectMeta, &to.ObjectMeta)
		faults = validation.ValidateSecretUpdate(to, from)
	case was.Claim != nil && is.Claim != nil:
		from, to := internal(was.Claim, &core.PersistentVolumeClaim{}), internal(is.Claim, &core.PersistentVolumeClaim{})
		alike(&from.ObjectMeta, &to.ObjectMeta)
		from.Status.Phase, to.Status.Phase = core.ClaimBound, core.ClaimBound
		from.Status.Capacity = from.Spec.Resources.Requests // what is asked of a folder, it has at once
		faults = validation.ValidatePersistentVolumeClaimUpdate(to, from, validation.ValidationOptionsForPersistentVolumeClaimCreate())
	case was.Volume != nil && is.Volume != nil:
		from, to := internal(was.Volume, &core.PersistentVolume{}), internal(is.Volume, &core.PersistentVolume{})
		alike(&from.ObjectMeta, &to.ObjectMeta)
		faults = validation.ValidatePersistentVolumeUpdate(to, from, validation.ValidationOptionsForPersistentVolume(to, from))
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("%s: delete it first: %w", was.Key, faults.ToAggregate())
}

func internal[T runtime.Object](object any, into T) T {
	utilruntime.Must(scheme.Convert(object, into, nil))
	return into
}

// alike makes two versions of an object of their metadata, of which nothing is fixed.
func alike(was, is *metav1.ObjectMeta) {
	was.ResourceVersion = "1"
	*is = *was
}

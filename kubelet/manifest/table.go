package manifest

import "strings"

// A Verdict is what becomes of a field.
type Verdict string

// The verdicts.
const (
	Honoured Verdict = "honoured" // it does what it does in a cluster
	Ignored  Verdict = "ignored"  // kept and shown; can have no effect on a node by itself; a warning says so
	Set      Verdict = "set"      // the node's to set; taken out of what is declared, with a warning
	Refused  Verdict = "refused"  // an error
)

// A Field says what becomes of a field of an API type. Below a field that is not honoured, no others count.
type Field struct {
	Type, Name string
	Verdict    Verdict
	Words      string // why not, or what to know
}

// Fields are all fields that may be met in a manifest, by type. A test holds them against the types.
var Fields = fields(
	group{"Pod", Honoured, "", "apiVersion kind metadata spec"},
	group{"Pod", Set, "the node sets it", "status"},

	group{"ObjectMeta", Honoured, "", "name namespace labels annotations"},
	group{"ObjectMeta", Refused, "an object is known by its name, which a manifest must give", "generateName"},
	group{"ObjectMeta", Set, "the node sets it", "uid resourceVersion generation creationTimestamp deletionTimestamp deletionGracePeriodSeconds selfLink managedFields"},
	group{"ObjectMeta", Set, "there are no controllers here that would act on it", "ownerReferences finalizers"},

	group{"PodSpec", Honoured, "", `volumes initContainers containers ephemeralContainers restartPolicy terminationGracePeriodSeconds activeDeadlineSeconds
		dnsPolicy hostNetwork hostPID hostIPC shareProcessNamespace securityContext imagePullSecrets hostname subdomain hostAliases priority dnsConfig
		enableServiceLinks overhead setHostnameAsFQDN os hostUsers resources hostnameOverride`},
	group{"PodSpec", Honoured, "system-cluster-critical and system-node-critical; any other priority is said by priority", "priorityClassName"},
	group{"PodSpec", Honoured, "the name of a runtime handler in the configuration", "runtimeClassName"},
	group{"PodSpec", Ignored, "every pod here runs on this node", "nodeSelector affinity schedulerName tolerations topologySpreadConstraints preemptionPolicy"},
	group{"PodSpec", Set, "every pod here runs on this node", "nodeName"},
	group{"PodSpec", Ignored, "there is no API server here that an account would be for; its token is not mounted", "serviceAccountName serviceAccount automountServiceAccountToken"},
	group{"PodSpec", Refused, "there is nothing here that would set the condition, and the pod would never be ready", "readinessGates"},
	group{"PodSpec", Refused, "there is nothing here that would lift the gate, and the pod would never run", "schedulingGates"},
	group{"PodSpec", Refused, "there is no dynamic allocation of devices here; devices come by CDI, from the runtime handler", "resourceClaims"},
	group{"PodSpec", Refused, "there is no scheduler here", "schedulingGroup"},

	group{"Volume", Honoured, "", "name hostPath emptyDir configMap secret downwardAPI projected image nfs"},
	group{"Volume", Honoured, "a PersistentVolume that the claim is bound to, or a directory under the node's root", "persistentVolumeClaim"},
	group{"Volume", Refused, "a volume that lives as long as its pod is an emptyDir", "ephemeral"},
	group{"Volume", Refused, "CSI drivers are not run", "csi"},
	group{"Volume", Refused, "mount it on the host, and take it as hostPath", "iscsi fc glusterfs rbd cephfs quobyte storageos flocker"},
	group{"Volume", Refused, "it takes a cloud's controller", `gcePersistentDisk awsElasticBlockStore azureFile azureDisk cinder vsphereVolume photonPersistentDisk
		portworxVolume scaleIO`},
	group{"Volume", Refused, "Kubernetes has withdrawn it", "gitRepo flexVolume"},
	group{"HostPathVolumeSource", Honoured, "", "path type"},
	group{"EmptyDirVolumeSource", Honoured, "", "medium sizeLimit"},
	group{"SecretVolumeSource", Honoured, "", "secretName items defaultMode optional"},
	group{"ConfigMapVolumeSource", Honoured, "", "name items defaultMode optional"},
	group{"KeyToPath", Honoured, "", "key path mode"},
	group{"NFSVolumeSource", Honoured, "", "server path readOnly"},
	group{"PersistentVolumeClaimVolumeSource", Honoured, "", "claimName readOnly"},
	group{"DownwardAPIVolumeSource", Honoured, "", "items defaultMode"},
	group{"DownwardAPIVolumeFile", Honoured, "", "path fieldRef resourceFieldRef mode"},
	group{"ObjectFieldSelector", Honoured, "", "apiVersion fieldPath"},
	group{"ResourceFieldSelector", Honoured, "", "containerName resource divisor"},
	group{"ProjectedVolumeSource", Honoured, "", "sources defaultMode"},
	group{"VolumeProjection", Honoured, "", "secret downwardAPI configMap"},
	group{"VolumeProjection", Refused, "there is no API server here that would sign it", "serviceAccountToken clusterTrustBundle podCertificate"},
	group{"SecretProjection", Honoured, "", "name items optional"},
	group{"ConfigMapProjection", Honoured, "", "name items optional"},
	group{"DownwardAPIProjection", Honoured, "", "items"},
	group{"ImageVolumeSource", Honoured, "", "reference pullPolicy"},

	group{"Container", Honoured, "", `name image command args workingDir ports envFrom env resources restartPolicy restartPolicyRules volumeMounts
		livenessProbe readinessProbe startupProbe lifecycle terminationMessagePath terminationMessagePolicy imagePullPolicy securityContext stdin stdinOnce tty resizePolicy`},
	group{"Container", Refused, "volumes are directories here, not devices", "volumeDevices"},
	group{"ContainerResizePolicy", Honoured, "", "resourceName restartPolicy"},
	group{"EphemeralContainer", Honoured, "", `name image command args workingDir envFrom env volumeMounts terminationMessagePath terminationMessagePolicy
		imagePullPolicy securityContext stdin stdinOnce tty targetContainerName`},
	group{"EphemeralContainer", Refused, "Kubernetes does not allow it for an ephemeral container", `ports resources resizePolicy restartPolicy restartPolicyRules
		volumeDevices livenessProbe readinessProbe startupProbe lifecycle`},
	group{"ContainerPort", Honoured, "", "name hostPort containerPort protocol hostIP"},
	group{"EnvFromSource", Honoured, "", "prefix configMapRef secretRef"},
	group{"ConfigMapEnvSource", Honoured, "", "name optional"},
	group{"SecretEnvSource", Honoured, "", "name optional"},
	group{"EnvVar", Honoured, "", "name value valueFrom"},
	group{"EnvVarSource", Honoured, "", "fieldRef resourceFieldRef configMapKeyRef secretKeyRef fileKeyRef"},
	group{"ConfigMapKeySelector", Honoured, "", "name key optional"},
	group{"SecretKeySelector", Honoured, "", "name key optional"},
	group{"FileKeySelector", Honoured, "", "volumeName path key optional"},
	group{"ResourceRequirements", Honoured, "", "limits requests"},
	group{"ResourceRequirements", Refused, "there is no dynamic allocation of devices here", "claims"},
	group{"ContainerRestartRule", Honoured, "", "action exitCodes"},
	group{"ContainerRestartRuleOnExitCodes", Honoured, "", "operator values"},
	group{"VolumeMount", Honoured, "", "name readOnly recursiveReadOnly mountPath subPath mountPropagation subPathExpr"},
	group{"Probe", Honoured, "", `exec httpGet tcpSocket grpc initialDelaySeconds timeoutSeconds periodSeconds successThreshold failureThreshold
		terminationGracePeriodSeconds`},
	group{"ExecAction", Honoured, "", "command"},
	group{"HTTPGetAction", Honoured, "", "path port host scheme httpHeaders"},
	group{"HTTPHeader", Honoured, "", "name value"},
	group{"TCPSocketAction", Honoured, "", "port host"},
	group{"GRPCAction", Honoured, "", "port service"},
	group{"Lifecycle", Honoured, "", "postStart preStop stopSignal"},
	group{"LifecycleHandler", Honoured, "", "exec httpGet sleep"},
	group{"LifecycleHandler", Honoured, "connects to the port; with other kubelets such a hook fails", "tcpSocket"},
	group{"SleepAction", Honoured, "", "seconds"},
	group{"SecurityContext", Honoured, "", `capabilities privileged seLinuxOptions runAsUser runAsGroup runAsNonRoot readOnlyRootFilesystem
		allowPrivilegeEscalation procMount seccompProfile appArmorProfile`},
	group{"SecurityContext", Refused, "this is no Windows", "windowsOptions"},
	group{"PodSecurityContext", Honoured, "", `seLinuxOptions runAsUser runAsGroup runAsNonRoot supplementalGroups supplementalGroupsPolicy fsGroup sysctls
		fsGroupChangePolicy seccompProfile appArmorProfile`},
	group{"PodSecurityContext", Ignored, "the label of a volume is set on each of its files, as with Recursive", "seLinuxChangePolicy"},
	group{"PodSecurityContext", Refused, "this is no Windows", "windowsOptions"},
	group{"Capabilities", Honoured, "", "add drop"},
	group{"SELinuxOptions", Honoured, "", "user role type level"},
	group{"SeccompProfile", Honoured, "", "type localhostProfile"},
	group{"AppArmorProfile", Honoured, "", "type localhostProfile"},
	group{"Sysctl", Honoured, "", "name value"},
	group{"LocalObjectReference", Honoured, "", "name"},
	group{"HostAlias", Honoured, "", "ip hostnames"},
	group{"PodDNSConfig", Honoured, "", "nameservers searches options"},
	group{"PodDNSConfigOption", Honoured, "", "name value"},
	group{"PodOS", Honoured, "linux", "name"},

	group{"ConfigMap", Honoured, "", "apiVersion kind metadata immutable data binaryData"},
	group{"Secret", Honoured, "", "apiVersion kind metadata immutable data stringData type"},

	group{"PersistentVolumeClaim", Honoured, "", "apiVersion kind metadata spec"},
	group{"PersistentVolumeClaim", Set, "the node sets it", "status"},
	group{"PersistentVolumeClaimSpec", Honoured, "", "accessModes"},
	group{"PersistentVolumeClaimSpec", Honoured, "shown as the capacity; the directory has no limit but the disk's", "resources"},
	group{"PersistentVolumeClaimSpec", Honoured, "Filesystem", "volumeMode"},
	group{"PersistentVolumeClaimSpec", Honoured, "of the PersistentVolumes that the claim can be bound to; where none has this class, the claim is a directory", "storageClassName"},
	group{"PersistentVolumeClaimSpec", Honoured, "of PersistentVolumes", "selector volumeName"},
	group{"PersistentVolumeClaimSpec", Ignored, "nothing here has such attributes", "volumeAttributesClassName"},
	group{"PersistentVolumeClaimSpec", Refused, "a claim begins empty", "dataSource dataSourceRef"},
	group{"VolumeResourceRequirements", Honoured, "", "limits requests"},
	group{"LabelSelector", Honoured, "", "matchLabels matchExpressions"},
	group{"LabelSelectorRequirement", Honoured, "", "key operator values"},

	group{"PersistentVolume", Honoured, "", "apiVersion kind metadata spec"},
	group{"PersistentVolume", Set, "the node sets it", "status"},
	group{"PersistentVolumeSpec", Honoured, "", "accessModes storageClassName claimRef nodeAffinity"},
	group{"PersistentVolumeSpec", Honoured, "what claims may ask for; nothing is limited to it", "capacity"},
	group{"PersistentVolumeSpec", Honoured, "Filesystem", "volumeMode"},
	group{"PersistentVolumeSpec", Honoured, "Retain", "persistentVolumeReclaimPolicy"},
	group{"PersistentVolumeSpec", Honoured, "a directory that is there", "local"},
	group{"PersistentVolumeSpec", Honoured, "", "hostPath nfs"},
	group{"PersistentVolumeSpec", Honoured, "of nfs", "mountOptions"},
	group{"PersistentVolumeSpec", Ignored, "nothing here has such attributes", "volumeAttributesClassName"},
	group{"PersistentVolumeSpec", Refused, "CSI drivers are not run", "csi"},
	group{"PersistentVolumeSpec", Refused, "mount it on the host, and take it as local", "iscsi fc glusterfs rbd cephfs quobyte storageos flocker"},
	group{"PersistentVolumeSpec", Refused, "it takes a cloud's controller", `gcePersistentDisk awsElasticBlockStore azureFile azureDisk cinder vsphereVolume
		photonPersistentDisk portworxVolume scaleIO`},
	group{"PersistentVolumeSpec", Refused, "Kubernetes has withdrawn it", "flexVolume"},
	group{"LocalVolumeSource", Honoured, "", "path"},
	group{"LocalVolumeSource", Refused, "it says how a block device is formatted; here the path is a directory: mount the device there", "fsType"},
	group{"ObjectReference", Honoured, "", "kind namespace name uid apiVersion"},
	group{"ObjectReference", Ignored, "a claim is known by its name", "resourceVersion fieldPath"},
	group{"VolumeNodeAffinity", Honoured, "held against the labels of this node", "required"},
	group{"NodeSelector", Honoured, "", "nodeSelectorTerms"},
	group{"NodeSelectorTerm", Honoured, "", "matchExpressions matchFields"},
	group{"NodeSelectorRequirement", Honoured, "", "key operator values"},
)

// table is Fields by type and name.
var table = func() map[string]Field {
	byKey := make(map[string]Field, len(Fields))
	for _, f := range Fields {
		byKey[f.Type+"."+f.Name] = f
	}
	return byKey
}()

// group are fields of a type of which the same is to be said.
type group struct {
	typ     string
	verdict Verdict
	words   string
	names   string
}

func fields(groups ...group) (all []Field) {
	for _, g := range groups {
		for _, name := range strings.Fields(g.names) {
			all = append(all, Field{g.typ, name, g.verdict, g.words})
		}
	}
	return all
}

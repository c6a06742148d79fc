// Package config is berth's configuration: one YAML file over embedded defaults.
//
// The embedded default.yaml is the only place where defaults and the words for operators are. Loading is strict: a key
// that nobody reads, or a value that cannot be meant, is an error that names file, line and key, since a typing error in
// a limit must not pass as "no limit".
package config

import (
	_ "embed"
	"io"
	"time"
)

//go:embed default.yaml
var defaultYAML []byte

// Where the parts of a node are if nobody says otherwise.
const (
	DefaultPath   = "/etc/berth/config.yaml"
	DefaultRunDir = "/run/berth"
)

// KeeperExternal in place of the keeper's path says that the daemon does not start it.
const KeeperExternal = "external"

// Config is the whole configuration; default.yaml says what each key means. Values that depend on others are empty until
// [Config.Resolve] fills them in.
type Config struct {
	RootDir         string             `yaml:"rootDir"`
	RunDir          string             `yaml:"runDir"`
	CRISocket       string             `yaml:"criSocket"`
	CRISocketGroup  int                `yaml:"criSocketGroup"`
	Keeper          string             `yaml:"keeper"`
	Launch          string             `yaml:"launch"`
	Network         Network            `yaml:"network"`
	Cgroup          Cgroup             `yaml:"cgroup"`
	Image           Image              `yaml:"image"`
	RuntimeHandlers map[string]Handler `yaml:"runtimeHandlers"`
	Container       Container          `yaml:"container"`
	Exec            Exec               `yaml:"exec"`
	NRI             NRI                `yaml:"nri"`
	Streaming       Streaming          `yaml:"streaming"`
	Log             Log                `yaml:"log"`
	Metrics         Metrics            `yaml:"metrics"`
	// Manifests is a folder of pods that the node runs by itself; empty for none.
	Manifests          string        `yaml:"manifests"`
	ManifestsRecursive bool          `yaml:"manifestsRecursive"`
	ManifestsRescan    time.Duration `yaml:"manifestsRescan"`
	Kubelet            Kubelet       `yaml:"kubelet"`
}

// The modes of [Network].
const (
	NetworkBuiltin = "builtin"
	NetworkCNI     = "cni"
)

// Network is the network of pods.
type Network struct {
	Mode            string   `yaml:"mode"`
	CNIConfDir      string   `yaml:"cniConfDir"`
	CNIBinDirs      []string `yaml:"cniBinDirs"`
	CNIConfTemplate string   `yaml:"cniConfTemplate"`
	CNIOwnNetworks  bool     `yaml:"cniOwnNetworks"`
	Builtin         Builtin  `yaml:"builtin"`
}

// Builtin is the built-in network. The ranges are prefixes, or empty.
type Builtin struct {
	Bridge     string `yaml:"bridge"`
	IPv4Pool   string `yaml:"ipv4Pool"`
	IPv6Prefix string `yaml:"ipv6Prefix"`
	MTU        int    `yaml:"mtu"`
}

// CgroupAuto is the driver that is chosen at start; the others are those of package cgroups.
const CgroupAuto = "auto"

// Cgroup says who makes cgroups, and where.
type Cgroup struct {
	Driver        string `yaml:"driver"`
	DefaultParent string `yaml:"defaultParent"`
}

// Image is the fetching and keeping of images.
type Image struct {
	RegistryHostsDirs   []string      `yaml:"registryHostsDirs"`
	MaxParallelLayers   int           `yaml:"maxParallelLayers"`
	PullProgressTimeout time.Duration `yaml:"pullProgressTimeout"`
	Pinned              []string      `yaml:"pinned"`
}

// Handler is what a runtime handler adds to a container.
type Handler struct {
	CDIDevices                   []string `yaml:"cdiDevices"`
	PrivilegedWithoutHostDevices bool     `yaml:"privilegedWithoutHostDevices"`
}

// Container is what containers have in common.
type Container struct {
	SeccompProfile          string   `yaml:"seccompProfile"`
	AppArmorProfile         string   `yaml:"apparmorProfile"`
	EnableUnprivilegedPorts bool     `yaml:"enableUnprivilegedPorts"`
	EnableUnprivilegedICMP  bool     `yaml:"enableUnprivilegedICMP"`
	CDISpecDirs             []string `yaml:"cdiSpecDirs"`
	Libcontainer            bool     `yaml:"libcontainer"`
}

// Exec bounds commands in containers.
type Exec struct {
	MaxOutput    int           `yaml:"maxOutput"` // bytes a stream
	DrainTimeout time.Duration `yaml:"drainTimeout"`
	Libcontainer bool          `yaml:"libcontainer"`
}

// NRI is the Node Resource Interface.
type NRI struct {
	Enable              bool          `yaml:"enable"`
	SocketPath          string        `yaml:"socketPath"`
	PluginPath          string        `yaml:"pluginPath"`
	PluginConfigPath    string        `yaml:"pluginConfigPath"`
	RegistrationTimeout time.Duration `yaml:"registrationTimeout"`
	RequestTimeout      time.Duration `yaml:"requestTimeout"`
}

// Streaming is the server of exec, attach and port-forward.
type Streaming struct {
	Address     string        `yaml:"address"`
	Port        int           `yaml:"port"`
	IdleTimeout time.Duration `yaml:"idleTimeout"`
}

// Log is the log of berth, and the form of those of containers.
type Log struct {
	Level                   string `yaml:"level"`  // a slog.Level
	Format                  string `yaml:"format"` // "text" or "json"
	MaxContainerLogLineSize int    `yaml:"maxContainerLogLineSize"`
}

// Kubelet is what the pods of the node itself, which come from manifests and from "berth apply", have in common.
type Kubelet struct {
	NodeName         string   `yaml:"nodeName"`
	NodeIPs          []string `yaml:"nodeIPs"`
	APIAddress       string   `yaml:"apiAddress"`
	Address          string   `yaml:"address"`
	ClusterDNS       []string `yaml:"clusterDNS"`
	ClusterDomain    string   `yaml:"clusterDomain"`
	ResolvConf       string   `yaml:"resolvConf"`
	PodLogsDir       string   `yaml:"podLogsDir"`
	LogLinksDir      string   `yaml:"containerLogsDir"`
	SeccompDir       string   `yaml:"seccompDir"`
	SeccompDefault   bool     `yaml:"seccompDefault"`
	CgroupRoot       string   `yaml:"cgroupRoot"`
	CrashLoopBackOff BackOff  `yaml:"crashLoopBackOff"`
	ImagePullBackOff BackOff  `yaml:"imagePullBackOff"`
	LimitedSwap      bool     `yaml:"limitedSwap"`
	PodPidsLimit     int      `yaml:"podPidsLimit"`
	MaxPods          int      `yaml:"maxPods"`

	// What of the machine is not for pods, by resource: for the runtime and for the system.
	KubeReserved     map[string]string `yaml:"kubeReserved"`
	SystemReserved   map[string]string `yaml:"systemReserved"`
	UnsafeSysctls    []string          `yaml:"allowedUnsafeSysctls"`
	CredentialConfig string            `yaml:"imageCredentialProviderConfig"`
	CredentialBinDir string            `yaml:"imageCredentialProviderBinDir"`

	LogMaxSize  string        `yaml:"containerLogMaxSize"`
	LogMaxFiles int           `yaml:"containerLogMaxFiles"`
	LogInterval time.Duration `yaml:"containerLogMonitorInterval"`

	ShutdownByPriority []ShutdownGrace `yaml:"shutdownGracePeriodByPodPriority"`

	EvictionHard            map[string]string `yaml:"evictionHard"`
	EvictionSoft            map[string]string `yaml:"evictionSoft"`
	EvictionSoftGracePeriod map[string]string `yaml:"evictionSoftGracePeriod"`
	EvictionMinimumReclaim  map[string]string `yaml:"evictionMinimumReclaim"`
	EvictionMaxGrace        int               `yaml:"evictionMaxPodGracePeriod"`
	EvictionTransition      time.Duration     `yaml:"evictionPressureTransitionPeriod"`
	ImageGCHigh             int               `yaml:"imageGCHighThresholdPercent"`
	ImageGCLow              int               `yaml:"imageGCLowThresholdPercent"`
	ImageMinAge             time.Duration     `yaml:"imageMinimumGCAge"`
	ImageMaxAge             time.Duration     `yaml:"imageMaximumGCAge"`
}

// LogLinksOff as the folder of links to logs is none.
const LogLinksOff = "off"

// LogLinks is the folder of links to logs; "" is none.
func (k *Kubelet) LogLinks() string {
	switch {
	case k.LogLinksDir == LogLinksOff, k.LogLinksDir == "" && k.PodLogsDir != "/var/log/pods":
		return ""
	case k.LogLinksDir == "":
		return "/var/log/containers"
	}
	return k.LogLinksDir
}

// ShutdownGrace is for pods of a priority and above, up to the next one.
type ShutdownGrace struct {
	Priority int `yaml:"priority"`
	Seconds  int `yaml:"shutdownGracePeriodSeconds"`
}

// BackOff is a pause that doubles.
type BackOff struct {
	Initial time.Duration `yaml:"initial"`
	Max     time.Duration `yaml:"max"`
}

// MetricsOff as the address switches metrics off.
const MetricsOff = "off"

// Metrics is where Prometheus finds the node.
type Metrics struct {
	Address string `yaml:"address"`
	Pprof   bool   `yaml:"pprof"`
}

// Default returns the defaults.
func Default() Config {
	var c Config
	if err := decode("the embedded default.yaml", defaultYAML, &c); err != nil {
		panic(err) // a test loads it
	}
	return c
}

// WriteDefault writes the defaults as a file with a comment on every key.
func WriteDefault(w io.Writer) error {
	_, err := w.Write(defaultYAML)
	return err
}

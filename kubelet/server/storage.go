package server

import (
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-node/berth/kubelet/volume"
)

// volumeAge is for how long what volumes take is not counted again, since that takes as long as their files are many:
// upstream's volumeStatsAggPeriod. Nobody counts while nobody asks.
const volumeAge = time.Minute

// measured is what a pod's volumes took at some time.
type measured struct {
	at      time.Time
	volumes []volume.Usage
}

// measure returns what the volumes of the pods take, by the pods' UIDs.
func (s *Server) measure(all []usage) map[types.UID]measured {
	s.measuring.Lock() // who asks meanwhile waits for the same answer
	defer s.measuring.Unlock()
	now, next := s.cfg.Now(), map[types.UID]measured{}
	for _, u := range all {
		m, known := s.measured[u.pod.UID]
		if !known || now.Sub(m.at) >= volumeAge {
			m = measured{at: now}
			var err error
			if m.volumes, err = s.cfg.Volumes(u.pod); err != nil {
				s.cfg.Log.Debug("volumes could not be measured", "pod", u.pod.Name, "namespace", u.pod.Namespace, "err", err)
			}
		}
		next[u.pod.UID] = m
	}
	s.measured = next // without those of pods that are gone
	return next
}

// addStorage adds to a pod what it takes of the disk: its volumes, its containers' logs, and all of it together with its files. fs is the file
// system that all is on but for volumes that are mounted.
func (s *Server) addStorage(p *stats.PodStats, pod *v1.Pod, m measured, fs stats.FsStats) {
	total := withUsage(fs, 0, 0)
	add := func(of *stats.FsStats) {
		if of.UsedBytes != nil {
			*total.UsedBytes += *of.UsedBytes
		}
		if of.InodesUsed != nil {
			*total.InodesUsed += *of.InodesUsed
		}
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		root := withUsage(fs, 0, 0)
		root.Time, root.UsedBytes, root.InodesUsed = c.Rootfs.Time, c.Rootfs.UsedBytes, c.Rootfs.InodesUsed
		c.Rootfs = &root
		add(c.Rootfs)
		if logs, err := volume.MeasureFolder(s.cfg.LogDir(pod, c.Name)); err == nil {
			l := withUsage(fs, logs.Bytes, logs.Inodes)
			c.Logs = &l
			add(c.Logs)
		}
	}
	if files, err := s.cfg.Files(pod); err == nil {
		all := withUsage(fs, files.Bytes, files.Inodes)
		add(&all)
	}
	ephemeral, persistent := volumeStats(pod, m)
	for i := range ephemeral {
		add(&ephemeral[i].FsStats)
	}
	p.VolumeStats = append(ephemeral, persistent...)
	p.EphemeralStorage = &total
}

func withUsage(fs stats.FsStats, bytes, inodes uint64) stats.FsStats {
	fs.UsedBytes, fs.InodesUsed = &bytes, &inodes
	return fs
}

// volumeStats are those of volumes that take of the node's disk as long as the pod is there, and all others.
func volumeStats(pod *v1.Pod, m measured) (ephemeral, persistent []stats.VolumeStats) {
	for _, u := range m.volumes {
		st := stats.VolumeStats{Name: u.Name, FsStats: stats.FsStats{
			Time: metav1.NewTime(m.at), CapacityBytes: &u.On.Capacity, AvailableBytes: &u.On.Available, UsedBytes: &u.Bytes,
			Inodes: &u.On.Inodes, InodesFree: &u.On.InodesFree, InodesUsed: &u.Inodes,
		}}
		v := volumeOf(pod, u.Name)
		if claim := v.PersistentVolumeClaim; claim != nil {
			st.PVCRef = &stats.PVCReference{Name: claim.ClaimName, Namespace: pod.Namespace}
		}
		if v.ConfigMap != nil || v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault {
			ephemeral = append(ephemeral, st)
		} else {
			persistent = append(persistent, st)
		}
	}
	return ephemeral, persistent
}

func volumeOf(pod *v1.Pod, name string) *v1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return &v1.Volume{}
}

var (
	claimLabels = []string{"namespace", "persistentvolumeclaim"}

	volumeCapacity   = prometheus.NewDesc("kubelet_volume_stats_capacity_bytes", "[ALPHA] Capacity in bytes of the volume", claimLabels, nil)
	volumeAvailable  = prometheus.NewDesc("kubelet_volume_stats_available_bytes", "[ALPHA] Number of available bytes in the volume", claimLabels, nil)
	volumeUsed       = prometheus.NewDesc("kubelet_volume_stats_used_bytes", "[ALPHA] Number of used bytes in the volume", claimLabels, nil)
	volumeInodes     = prometheus.NewDesc("kubelet_volume_stats_inodes", "[ALPHA] Maximum number of inodes in the volume", claimLabels, nil)
	volumeInodesFree = prometheus.NewDesc("kubelet_volume_stats_inodes_free", "[ALPHA] Number of free inodes in the volume", claimLabels, nil)
	volumeInodesUsed = prometheus.NewDesc("kubelet_volume_stats_inodes_used", "[ALPHA] Number of used inodes in the volume", claimLabels, nil)
)

// collectClaims makes the metrics of the claims that pods use, each once.
func (s *Server) collectClaims(all []usage, ch chan<- prometheus.Metric) {
	seen := map[stats.PVCReference]bool{}
	now := s.measure(all)
	for _, u := range all {
		_, persistent := volumeStats(u.pod, now[u.pod.UID])
		for _, v := range persistent {
			if v.PVCRef == nil || seen[*v.PVCRef] {
				continue
			}
			seen[*v.PVCRef] = true
			for desc, value := range map[*prometheus.Desc]*uint64{
				volumeCapacity: v.CapacityBytes, volumeAvailable: v.AvailableBytes, volumeUsed: v.UsedBytes,
				volumeInodes: v.Inodes, volumeInodesFree: v.InodesFree, volumeInodesUsed: v.InodesUsed,
			} {
				ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(*value), v.PVCRef.Namespace, v.PVCRef.Name)
			}
		}
	}
}

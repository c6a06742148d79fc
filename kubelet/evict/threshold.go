package evict

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// A Signal is a quantity of the node that can become scarce, by its name in a kubelet's configuration.
type Signal string

// The signals. nodefs is the file system with the pods' volumes, logs and writable layers, imagefs that of the images.
const (
	MemoryAvailable   Signal = "memory.available"
	NodeFsAvailable   Signal = "nodefs.available"
	NodeFsInodesFree  Signal = "nodefs.inodesFree"
	ImageFsAvailable  Signal = "imagefs.available"
	ImageFsInodesFree Signal = "imagefs.inodesFree"
	PIDAvailable      Signal = "pid.available"
)

// Resources that messages name, beside those of the API.
const (
	resourceInodes v1.ResourceName = "inodes"
	resourcePIDs   v1.ResourceName = "pids"
)

// about says what a signal is about.
var about = map[Signal]struct {
	resource  v1.ResourceName
	condition v1.NodeConditionType
}{
	MemoryAvailable:   {v1.ResourceMemory, v1.NodeMemoryPressure},
	NodeFsAvailable:   {v1.ResourceEphemeralStorage, v1.NodeDiskPressure},
	NodeFsInodesFree:  {resourceInodes, v1.NodeDiskPressure},
	ImageFsAvailable:  {v1.ResourceEphemeralStorage, v1.NodeDiskPressure},
	ImageFsInodesFree: {resourceInodes, v1.NodeDiskPressure},
	PIDAvailable:      {resourcePIDs, v1.NodePIDPressure},
}

// An Observation is what there is of a signal's resource: bytes, inodes or processes.
type Observation struct{ Available, Capacity int64 }

// An Amount is a number of units, or a part of the capacity.
type Amount struct {
	Units int64
	Part  float64 // of 1; Units are none then
}

func (a Amount) of(capacity int64) int64 {
	if a.Part > 0 {
		return int64(a.Part * float64(capacity))
	}
	return a.Units
}

// A Threshold is met while less than Least is available. Grace 0 is a hard threshold: pods are not given the time they ask for.
type Threshold struct {
	Signal     Signal
	Least      Amount
	Grace      time.Duration
	MinReclaim Amount // once it was met it is over when so much more is available
}

// Reserved is what hard thresholds keep free of a signal's resource, of which there is so much.
func Reserved(thresholds []Threshold, signal Signal, capacity int64) int64 {
	for _, t := range thresholds {
		if t.Signal == signal && t.Grace == 0 {
			return t.Least.of(capacity)
		}
	}
	return 0
}

// Rules are the settings of a KubeletConfiguration by the names there, and their form: a signal, and an amount or a duration.
type Rules struct {
	EvictionHard, EvictionSoft, EvictionSoftGracePeriod, EvictionMinimumReclaim map[string]string
}

// DefaultRules are upstream's.
func DefaultRules() Rules {
	return Rules{EvictionHard: map[string]string{
		"memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%", "imagefs.inodesFree": "5%",
	}}
}

// Parse returns the thresholds in the order in which they are looked at: memory first. Errors name the setting and the signal.
func (r Rules) Parse() ([]Threshold, error) {
	var all []Threshold
	var faults []error
	fault := func(setting, signal string, err error) {
		faults = append(faults, fmt.Errorf("%s: %s: %w", setting, signal, err))
	}
	reclaim := map[Signal]Amount{}
	for _, name := range slices.Sorted(maps.Keys(r.EvictionMinimumReclaim)) {
		amount, err := parse(name, r.EvictionMinimumReclaim[name])
		if err != nil {
			fault("evictionMinimumReclaim", name, err)
		}
		reclaim[Signal(name)] = amount
	}
	add := func(setting string, from map[string]string, soft bool) {
		for _, name := range slices.Sorted(maps.Keys(from)) {
			least, err := parse(name, from[name])
			var grace time.Duration
			if err == nil && soft {
				if grace, err = time.ParseDuration(r.EvictionSoftGracePeriod[name]); err != nil || grace <= 0 {
					err = fmt.Errorf("a soft threshold needs a grace period above 0 in evictionSoftGracePeriod, which has %q", r.EvictionSoftGracePeriod[name])
				}
			}
			if err != nil {
				fault(setting, name, err)
				continue
			}
			if least != (Amount{}) { // 0 and 0% switch a signal off
				all = append(all, Threshold{Signal: Signal(name), Least: least, Grace: grace, MinReclaim: reclaim[Signal(name)]})
			}
		}
	}
	add("evictionHard", r.EvictionHard, false)
	add("evictionSoft", r.EvictionSoft, true)
	for _, name := range slices.Sorted(maps.Keys(r.EvictionSoftGracePeriod)) {
		if _, ok := r.EvictionSoft[name]; !ok {
			fault("evictionSoftGracePeriod", name, errors.New("evictionSoft has no such threshold"))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	slices.SortStableFunc(all, func(a, b Threshold) int { return first(b.Signal) - first(a.Signal) })
	return all, nil
}

func first(s Signal) int {
	if s == MemoryAvailable {
		return 1
	}
	return 0
}

func parse(signal, text string) (Amount, error) {
	if _, ok := about[Signal(signal)]; !ok {
		return Amount{}, fmt.Errorf("there is no such signal here; there are %s", join(slices.Sorted(maps.Keys(about))))
	}
	if number, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || !(percent >= 0 && percent < 100) {
			return Amount{}, fmt.Errorf("%q is no percentage from 0 to below 100", text)
		}
		return Amount{Part: percent / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return Amount{}, fmt.Errorf("%q is neither a quantity that is not negative nor a percentage", text)
	}
	return Amount{Units: q.Value()}, nil
}

func join(signals []Signal) string {
	var names []string
	for _, s := range signals {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

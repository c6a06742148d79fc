// Package enter holds the program that starts a further process in a container, and the words in which it is told what to
// do: a Plan, and the Reports that it answers with. See enter.c.
//
// It is libcontainer's exec without libcontainer: no Go runtime to start twice, no filter to compile, a handful of system
// calls. What it cannot do (a terminal, a seccomp agent, SELinux) stays with libcontainer.
package enter

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// Binary returns the program for the architecture of this build, a static ELF file. The caller must not change it.
func Binary() []byte { return program }

// The descriptors with which the program is started, above the workload's own three.
const (
	FilePlan   = 3 // the plan, open for reading; nothing else is done with it
	FileReport = 4 // a SOCK_SEQPACKET socket
	FileInit   = 5 // a pidfd of the container's init; of an init that is to be, the FIFO at which it waits for its start
	FileProc   = 6 // the node's /proc
)

// A Report is a message of the program.
type Report struct {
	// Pid of the process that was started, in the namespace of the node; its pidfd comes with the message. It runs the
	// workload when the socket ends without a further message. 0: the process was not made, or did not become the workload.
	Pid int
	// Step that failed, and how.
	Step  Step
	Errno syscall.Errno
}

// ReportSize is the length of every message, in bytes.
const ReportSize = 16

// The kinds of reports in enter.c.
const (
	started = 1
	failed  = 2
)

// ParseReport reads a message.
func ParseReport(data []byte) (Report, error) {
	if len(data) != ReportSize {
		return Report{}, fmt.Errorf("a report of %d bytes, want %d", len(data), ReportSize)
	}
	field := func(i int) uint32 { return binary.NativeEndian.Uint32(data[4*i:]) }
	switch field(0) {
	case started:
		if pid := int32(field(1)); pid > 0 {
			return Report{Pid: int(pid)}, nil
		}
	case failed:
		return Report{Step: Step(field(2)), Errno: syscall.Errno(field(3))}, nil
	}
	return Report{}, fmt.Errorf("a report of kind %d with pid %d", field(0), int32(field(1)))
}

// A Step is where the program failed. The numbers are those of enter.c.
type Step uint32

// The steps that concern the command: the container has not what the caller asked for.
const (
	StepCommand   Step = 23
	StepNotInPath Step = 24
	StepRelative  Step = 25
)

var stepNames = [...]string{
	1: "read the plan", 2: "set oom_score_adj", 3: "join the cgroup", 4: "set the resource limits", 5: "join the namespaces",
	6: "make a cgroup namespace", 7: "become root of the user namespace", 8: "clone", 9: "make a session", 10: "join the session keyring",
	11: "set no_new_privs", 12: "load the seccomp filter", 13: "enter the working directory", 14: "look for the home directory",
	15: "drop the bounding set", 16: "give the standard streams to the user", 17: "set the supplementary groups", 18: "set the group",
	19: "set the user", 20: "the working directory is outside of the container", 21: "set the capabilities", 22: "set the AppArmor profile",
	26: "join a namespace", 27: "make namespaces", 28: "set the propagation of mounts", 29: "mount the root filesystem", 30: "take what is to be mounted",
	31: "find the mount point", 32: "the mount point is the root itself, or under /proc", 33: "mount", 34: "set the attributes of a mount",
	35: "make the links of /dev", 36: "change the root", 37: "open /dev/null of the container", 38: "make the working directory", 39: "make paths read-only",
	40:          "mask paths",
	StepCommand: "find the command", StepNotInPath: "find the command in $PATH", StepRelative: "find the command in $PATH",
}

func (s Step) String() string {
	if int(s) < len(stepNames) && stepNames[s] != "" {
		return stepNames[s]
	}
	return fmt.Sprintf("step %d", uint32(s))
}

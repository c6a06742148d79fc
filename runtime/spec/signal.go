package spec

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The real-time signals as programs count them: the C library keeps 32 and 33 for itself.
const (
	sigRTMin = 34
	sigRTMax = 64
)

var signals = map[string]unix.Signal{
	"ABRT": unix.SIGABRT, "ALRM": unix.SIGALRM, "BUS": unix.SIGBUS, "CHLD": unix.SIGCHLD, "CLD": unix.SIGCHLD,
	"CONT": unix.SIGCONT, "FPE": unix.SIGFPE, "HUP": unix.SIGHUP, "ILL": unix.SIGILL, "INT": unix.SIGINT,
	"IO": unix.SIGIO, "IOT": unix.SIGIOT, "KILL": unix.SIGKILL, "PIPE": unix.SIGPIPE, "POLL": unix.SIGPOLL,
	"PROF": unix.SIGPROF, "PWR": unix.SIGPWR, "QUIT": unix.SIGQUIT, "SEGV": unix.SIGSEGV, "STKFLT": unix.SIGSTKFLT,
	"STOP": unix.SIGSTOP, "SYS": unix.SIGSYS, "TERM": unix.SIGTERM, "TRAP": unix.SIGTRAP, "TSTP": unix.SIGTSTP,
	"TTIN": unix.SIGTTIN, "TTOU": unix.SIGTTOU, "URG": unix.SIGURG, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2,
	"VTALRM": unix.SIGVTALRM, "WINCH": unix.SIGWINCH, "XCPU": unix.SIGXCPU, "XFSZ": unix.SIGXFSZ,
	"RTMIN": sigRTMin, "RTMAX": sigRTMax,
}

// StopSignal is the signal that asks a container to end: the request's, else the image's, else SIGTERM.
func StopSignal(asked cri.Signal, image string) (unix.Signal, error) {
	switch {
	case asked != cri.Signal_SIGNAL_RUNTIME_DEFAULT:
		name, ok := cri.Signal_name[int32(asked)]
		if !ok {
			return 0, invalid("stop_signal", "%d is not a signal", asked)
		}
		name = strings.NewReplacer("SIGNAL_", "", "PLUS", "+", "MINUS", "-").Replace(name)
		return ParseSignal(name)
	case image != "":
		sig, err := ParseSignal(image)
		if err != nil {
			return 0, fmt.Errorf("the image's stop signal: %w", err)
		}
		return sig, nil
	}
	return unix.SIGTERM, nil
}

// ParseSignal reads a signal by name (SIGTERM, term, RTMIN+3, SIGRTMAX-2) or by number.
func ParseSignal(s string) (unix.Signal, error) {
	bad := invalid("signal", "%.50q is not a signal", s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, bad
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig, ok := signals[name]; ok {
		return sig, nil
	}
	for _, rt := range []struct {
		prefix     string
		base, sign int
	}{{"RTMIN+", sigRTMin, 1}, {"RTMAX-", sigRTMax, -1}} {
		offset, ok := strings.CutPrefix(name, rt.prefix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(offset, 10, 8)
		if sig := rt.base + rt.sign*int(n); err == nil && sig >= sigRTMin && sig <= sigRTMax {
			return unix.Signal(sig), nil
		}
	}
	return 0, bad
}

// SignalToCRI is the signal in the words of CRI, for a container's status. Real-time signals up to RTMIN+15 count from
// the lower end, the others from the upper one, as CRI names them.
func SignalToCRI(sig unix.Signal) cri.Signal {
	n := int(sig)
	var name string
	switch {
	case n == sigRTMin:
		name = "RTMIN"
	case n == sigRTMax:
		name = "RTMAX"
	case n > sigRTMin && n <= sigRTMin+15:
		name = fmt.Sprintf("RTMINPLUS%d", n-sigRTMin)
	case n > sigRTMin && n < sigRTMax:
		name = fmt.Sprintf("RTMAXMINUS%d", sigRTMax-n)
	default:
		name = strings.TrimPrefix(unix.SignalName(sig), "SIG")
	}
	return cri.Signal(cri.Signal_value["SIGNAL_SIG"+name])
}

// Package launch does jobs of the keeper with libcontainer: create, exec, destroy or checkpoint.
//
// It is the only importer of libcontainer and belongs to the berth-launch binary alone. A launcher has one job at a time,
// because libcontainer's Start holds a lock and cannot be cancelled, waits for helpers of its own, which the keeper's
// wait would steal, and can stick in the kernel: a process per job confines all of that, and the keeper ends a launcher
// that hangs by killing it. A launcher that has made a container stays for another, up to maxJobs: it has built its tables
// and paged in its memory. After any other job, and after one that failed, it exits.
//
// The trees of processes during a create and an exec:
//
//	keeper (subreaper)               keeper (subreaper)
//	  ├── launcher                     └── launcher            this package
//	  │     └── first                        ├── stage 0, 1    libcontainer's helpers; reaped before Start returns
//	  └── init, once first has ended         └── process       made with CLONE_PARENT: the launcher's own child
//
// First is package enter's program, and init what it has cloned; where a container is not as most are, or that fails, first is
// stage 0 of libcontainer, whose init becomes the keeper's child by package stages. init.go decides. The process of an exec becomes it
// when the launcher exits. The launcher answers with the pid, the start time and a pidfd. Nothing here waits for the process or ends it, except where
// the job fails or its answer cannot be delivered.
package launch

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

// maxJobs bounds what a launcher holds in memory, of which it frees nothing.
const maxJobs = 16

// Serve waits for jobs on conn, does them one after the other, and answers. It returns nil when the last job was answered,
// whether or not it failed, and also if the keeper closed the connection without sending one. It is to be called once
// per process. Host is the mount namespace of the host if this process was started with keeper.LeanArg, or nil.
func Serve(conn *net.UnixConn, host *os.File) error {
	log := captureLog()
	var mounts *lean
	if host != nil {
		var err error
		if mounts, err = newLean(host); err != nil {
			return fmt.Errorf("reach the host's mounts: %w", err)
		}
	}
	var locked unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &locked); err != nil {
		return fmt.Errorf("read the limit of locked memory: %w", err)
	}
	warm()
	for done := 1; ; done++ {
		stays, err := serve(conn, mounts, log, &locked, done < maxJobs)
		if err != nil || !stays {
			return err
		}
	}
}

// serve does one job. mayStay allows another after it.
func serve(conn *net.UnixConn, mounts *lean, log *logBuffer, locked *unix.Rlimit, mayStay bool) (stays bool, err error) {
	var job keeper.Job
	files, err := wire.Read(conn, &job)
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("receive the job: %w", err)
	}
	failpoint.Here(failpoint.LaunchJobTaken)
	if job.Kind == keeper.JobFilter {
		wire.CloseAll(files)
		return false, answerFilter(conn, &job, log)
	}
	started, err := do(&job, files, mounts)
	failpoint.Here(failpoint.LaunchJobDone)
	// The workload has its own copies. Ours must be closed before the answer: whoever reads the other end of a pipe
	// after it must not see one writer too many.
	wire.CloseAll(files)
	stays = mayStay && err == nil && job.Kind == keeper.JobCreate && mounts.here()
	if err := answer(conn, &job, started, stays, err, func(err error) string { return mounts.say(log.explain(err)) }); err != nil || !stays {
		return false, err
	}
	// After the answer, which somebody waits for.
	if started != nil && started.unknown != nil {
		learn(job.Filters, started.unknown)
	}
	if !readyAgain(mounts, log, locked) {
		return false, nil
	}
	return wire.Write(conn, &keeper.JobResult{Stays: true}) == nil, nil // if not, nobody has more jobs
}

// readyAgain tells whether nothing of a container that was made is left in this process.
func readyAgain(mounts *lean, log *logBuffer, locked *unix.Rlimit) bool {
	log.reset()
	// For the eBPF program of the devices of cgroup v2 libcontainer takes the limit off, which the next init would inherit.
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, locked); err != nil {
		return false
	}
	if err := os.Chdir("/"); err != nil { // it stood in the bundle
		return false
	}
	return mounts.drop() == nil
}

// do runs the job. started is nil for jobs that start no process.
func do(job *keeper.Job, files []*os.File, mounts *lean) (started *process, err error) {
	defer func() {
		// libcontainer panics on answers of its init that it does not expect. The keeper gets an answer all the same.
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: libcontainer panicked: %v", job.Kind, r)
		}
	}()
	if err := checkID(job); err != nil {
		return nil, err
	}
	if job.Kind == keeper.JobCreate {
		return create(job, files, mounts)
	}
	// Hooks and criu are programs of the host. An exec looks at nothing but the container; no mount is copied for it.
	if err := mounts.leave(); err != nil {
		return nil, err
	}
	switch job.Kind {
	case keeper.JobExec:
		return execute(job, files)
	case keeper.JobDestroy:
		return nil, destroy(job)
	case keeper.JobCheckpoint:
		return nil, checkpoint(job)
	}
	return nil, argumentError("unknown kind of job %q", job.Kind)
}

// answerFilter does the one job whose result is data.
func answerFilter(conn *net.UnixConn, job *keeper.Job, log *logBuffer) error {
	filter, err := compileFilter(job)
	result := keeper.JobResult{Filter: filter}
	if err != nil {
		result.Failure, result.Error = failureOf(err), log.explain(err)
	}
	return wire.Write(conn, &result)
}

// answer tells the keeper the outcome. A process that it cannot be told of would be nobody's, so that is undone.
func answer(conn *net.UnixConn, job *keeper.Job, started *process, stays bool, err error, explain func(error) string) error {
	result := keeper.JobResult{Stays: stays}
	var files []*os.File
	if err != nil {
		result.Failure = failureOf(err)
		result.Error = explain(err)
	} else if started != nil {
		defer started.pidfd.Close()
		result.Pid, result.StartTime, result.Fallback = started.pid, started.startTime, started.fallback
		result.Tried = started.tried
		files = []*os.File{started.pidfd}
	}
	if err := wire.Write(conn, &result, files...); err != nil {
		err = fmt.Errorf("answer the job %s of %s: %w", job.Kind, job.ID, err)
		if started != nil {
			err = errors.Join(err, started.undo())
		}
		return err
	}
	return nil
}

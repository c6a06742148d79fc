// Package launch does one job of the keeper with libcontainer: create, exec, destroy or checkpoint.
//
// It is the only importer of libcontainer and belongs to the berth-launch binary alone. A launcher does one job and
// exits, because libcontainer's Start holds a lock and cannot be cancelled, waits for helpers of its own, which the
// keeper's wait would steal, and can stick in the kernel: one process per job confines all of that, and the keeper
// ends a launcher that hangs by killing it.
//
// The tree of processes during a create or exec:
//
//	keeper (subreaper)
//	  └── launcher             this package
//	        ├── stage 0, 1     libcontainer's helpers; reaped before Start returns
//	        └── init           made with CLONE_PARENT: the launcher's own child
//
// The launcher answers with the pid, the start time and a pidfd of init and exits. Init is the keeper's child from then
// on. Nothing here waits for it or ends it, except where the job fails or its answer cannot be delivered.
package launch

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

// Serve waits for one job on conn, does it, and answers. It returns nil if the job was answered, whether or not it
// failed, and also if the keeper closed the connection without sending one. It is to be called once per process: a job
// may change the working directory and leaves libcontainer's caches as they are. Host is the mount namespace of the host if
// this process was started with keeper.LeanArg, or nil.
func Serve(conn *net.UnixConn, host *os.File) error {
	log := captureLog()
	var mounts *lean
	if host != nil {
		var err error
		if mounts, err = newLean(host); err != nil {
			return fmt.Errorf("reach the host's mounts: %w", err)
		}
	}
	warm()

	var job keeper.Job
	files, err := wire.Read(conn, &job)
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("receive the job: %w", err)
	}
	failpoint.Here(failpoint.LaunchJobTaken)
	if job.Kind == keeper.JobFilter {
		wire.CloseAll(files)
		return answerFilter(conn, &job, log)
	}
	started, err := do(&job, files, mounts)
	failpoint.Here(failpoint.LaunchJobDone)
	// The workload has its own copies. Ours must be closed before the answer: whoever reads the other end of a pipe
	// after it must not see one writer too many.
	wire.CloseAll(files)
	return answer(conn, &job, started, err, func(err error) string { return mounts.say(log.explain(err)) })
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
func answer(conn *net.UnixConn, job *keeper.Job, started *process, err error, explain func(error) string) error {
	var result keeper.JobResult
	var files []*os.File
	if err != nil {
		result.Failure = failureOf(err)
		result.Error = explain(err)
	} else if started != nil {
		defer started.pidfd.Close()
		result.Pid, result.StartTime = started.pid, started.startTime
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

package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestErrorsKeepTheirClassAndWords(t *testing.T) {
	for _, err := range []error{
		fmt.Errorf("container c: %w", errdefs.ErrNotFound),
		fmt.Errorf("container c: %w", errdefs.ErrAlreadyExists),
		fmt.Errorf("container c: %w", errdefs.ErrFailedPrecondition),
		fmt.Errorf("ID: %w", errdefs.ErrInvalidArgument),
		fmt.Errorf("no launcher: %w", errdefs.ErrUnavailable),
		errors.New("of no class"),
		fmt.Errorf("create: %w", &LaunchError{Failure: FailureNotRunning, Message: "gone"}),
	} {
		data, failed := json.Marshal(EncodeError(err))
		if failed != nil {
			t.Fatal(failed)
		}
		var sent WireError
		if failed := json.Unmarshal(data, &sent); failed != nil {
			t.Fatal(failed)
		}
		got := sent.Decode()
		var launch *LaunchError
		if errors.As(err, &launch) {
			var back *LaunchError
			if !errors.As(got, &back) || *back != *launch || !errors.Is(got, errdefs.ErrFailedPrecondition) {
				t.Errorf("%v came as %v", err, got)
			}
			continue
		}
		if got.Error() != err.Error() {
			t.Errorf("%q came as %q", err, got)
		}
		for _, c := range classes {
			if errors.Is(got, c.class) != errors.Is(err, c.class) {
				t.Errorf("%v came as class %v: %v", err, c.name, errors.Is(got, c.class))
			}
		}
	}
	if err := EncodeError(nil).Decode(); err != nil {
		t.Errorf("no error came as %v", err)
	}
}

func TestExitQueueKeepsOrderAndNeverWaits(t *testing.T) {
	q := newExitQueue()
	for i := range uint64(1000) {
		q.put(Exit{Seq: i}) // nobody reads yet
	}
	for i := range uint64(1000) {
		if e := <-q.out; e.Seq != i {
			t.Fatalf("exit %d came as number %d", e.Seq, i)
		}
	}
	q.close()
	if e, ok := <-q.out; ok {
		t.Errorf("after the end came %+v", e)
	}
}

package network

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// A daemon that dies while it writes a record leaves the file that would have taken its place.
func TestHalfWrittenAttachmentsGo(t *testing.T) {
	s := attachments{filepath.Join(t.TempDir(), "attachments"), slog.New(slog.DiscardHandler)}
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	if err := s.create(attachment{Request: Request{SandboxID: "whole"}}); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(s.dir, ".half.json.123")
	if err := os.WriteFile(half, []byte(`{"request":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(half); !os.IsNotExist(err) {
		t.Errorf("%s is there: %v", half, err)
	}
	if ids, err := s.all(); err != nil || len(ids) != 1 || ids[0] != "whole" {
		t.Errorf("attachments: %q, %v", ids, err)
	}
}

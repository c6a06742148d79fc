package wire

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// Any bytes on the socket are a message, an end or an error, at once; and a message that was read can be sent again.
func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x09{\"a\":[1]}\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := pair(t)
		if len(data) > 64<<10 {
			return // more than the socket holds
		}
		if _, err := theirs.Write(data); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		if err := ours.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			var msg map[string]any
			files, err := Read(ours, &msg)
			if len(files) != 0 {
				t.Errorf("%d files came from nowhere", len(files))
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("it waits for more after the end")
			}
			if err != nil {
				if len(data) == 0 && !errors.Is(err, io.EOF) {
					t.Errorf("an end between two messages: %v", err)
				}
				return
			}
			if _, err := json.Marshal(msg); err != nil {
				t.Error(err)
			}
		}
	})
}

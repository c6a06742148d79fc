//go:build cgo && seccomp

package filter

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func found(l *Loaded) func() (*Loaded, error) {
	return func() (*Loaded, error) { return l, nil }
}

func TestWhatIsLoadedIsLearnedOnce(t *testing.T) {
	c := Cache{Dir: filepath.Join(t.TempDir(), "seccomp")}
	config := refusing("mkdir")
	if _, _, err := c.Loaded(config); !errors.Is(err, ErrUnknown) {
		t.Fatalf("nobody has learned it: %v", err)
	}
	want := &Loaded{Code: []byte("instrone" + "instrtwo"), Flags: 1<<31 | 6}
	if err := c.Learn(config, found(want)); err != nil {
		t.Fatal(err)
	}
	if err := c.Learn(config, func() (*Loaded, error) { t.Error("it is learned anew"); return want, nil }); err != nil {
		t.Error(err)
	}
	program(t, c, config) // keeps its own
	got, rest, err := c.Loaded(config)
	if err != nil || !bytes.Equal(got.Code, want.Code) || got.Flags != want.Flags {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if rest == nil || len(rest.Syscalls) != 1 {
		t.Errorf("on record is %+v", rest)
	}
	if _, _, err := c.Loaded(refusing("rmdir")); !errors.Is(err, ErrUnknown) {
		t.Errorf("another profile's: %v", err)
	}
	if bytes.Equal(program(t, c, config), want.Code) {
		t.Error("it is taken for the compiled program")
	}
}

func TestDamagedLoadedEntryIsUnknown(t *testing.T) {
	c := Cache{Dir: filepath.Join(t.TempDir(), "seccomp")}
	config := refusing("mkdir")
	if err := c.Learn(config, found(&Loaded{Code: []byte("instrone")})); err != nil {
		t.Fatal(err)
	}
	path := entries(t, c.Dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flagged := bytes.Clone(data)
	flagged[len(data)-2*instruction] ^= 1 // of the flags
	for name, damaged := range map[string][]byte{"empty": nil, "truncated": data[:len(data)-instruction], "other flags": flagged} {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, _, err := c.Loaded(config); err == nil {
			t.Errorf("%s: %+v", name, l)
		}
	}
	if err := c.keep(path, []byte("flagsand")); err != nil { // no instruction
		t.Fatal(err)
	}
	if l, _, err := c.Loaded(config); err == nil {
		t.Errorf("of no instruction: %+v", l)
	}
	if err := c.Learn(config, found(&Loaded{Code: []byte("instrone")})); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Loaded(config); err != nil {
		t.Errorf("it was not replaced: %v", err)
	}
}

func TestWhatCannotBeLearnedIsNotTriedAgain(t *testing.T) {
	c := Cache{Dir: filepath.Join(t.TempDir(), "seccomp")}
	config, asked := refusing("mkdir", "hopeless"), 0
	for range 2 {
		_ = c.Learn(config, func() (*Loaded, error) { asked++; return nil, errors.New("no ptrace") })
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	if _, _, err := c.Loaded(config); err == nil {
		t.Error("it is known")
	}
	other := refusing("mkdir", "too long")
	if err := c.Learn(other, found(&Loaded{Code: make([]byte, maxProgram+instruction)})); err == nil {
		t.Error("a program that the kernel does not take was kept")
	}
}

package procfs

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const tail = " S 1 2 2 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 8 9 10"
	for name, line := range map[string]string{
		"plain":             "12 (sleep)" + tail,
		"space in name":     "12 (a b)" + tail,
		"parenthesis":       "12 (a) R 7)" + tail,
		"digits and spaces": "12 (1 2 3 4)" + tail,
	} {
		t.Run(name, func(t *testing.T) {
			st, err := parseStat(line)
			if err != nil || st.StartTime != 4711 || st.State != 'S' {
				t.Errorf("parseStat: %+v, %v", st, err)
			}
		})
	}
	for name, line := range map[string]string{
		"empty":      "",
		"cut":        "12 (sleep) S 1 2",
		"not number": "12 (sleep) S 1 2 2 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 x 8",
	} {
		t.Run(name, func(t *testing.T) {
			if st, err := parseStat(line); err == nil {
				t.Errorf("parseStat took it as %+v", st)
			}
		})
	}
}

func TestAlive(t *testing.T) {
	st, err := ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	self := Process{Pid: os.Getpid(), StartTime: st.StartTime}
	if !self.Alive() {
		t.Error("this process is said to be dead")
	}
	if at, err := self.StartedAt(); err != nil || at.After(time.Now()) || time.Since(at) > time.Hour {
		t.Errorf("this process started at %s, %v", at, err)
	}
	self.StartTime++
	if self.Alive() {
		t.Error("a process of this pid that started at another time is said to live")
	}

	cmd := exec.Command("true")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Run(); err != nil {
		t.Skip("no command to run: ", err)
	}
	if (Process{Pid: cmd.Process.Pid}).Alive() {
		t.Error("a process that has ended is said to live")
	}
}

package nri

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/procfs"
)

// reap asks for the end of plugins that ended before they were registered: the library starts them and then forgets them.
// They would stay zombies for as long as this process lives, through every reload.
func reap(pluginPath string) {
	entries, err := os.ReadDir(pluginPath)
	if err != nil {
		return // no folder, no plugins
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[comm(e.Name())] = true
	}
	for _, pid := range children() {
		if name, zombie := look(pid); zombie && names[name] {
			// By pid: other children have others who wait for them. Gone already is as good.
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// comm is what the kernel calls a process that runs the file: the first 15 bytes.
func comm(file string) string { return file[:min(len(file), 15)] }

// children are the pids of all children of this process, each of which is listed with the thread that started it.
func children() []int {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil
	}
	var pids []int
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// look returns the kernel's name of a process, and whether it has ended.
func look(pid int) (name string, zombie bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return "", false
	}
	st, err := procfs.ReadStat(pid)
	return strings.TrimSuffix(string(text), "\n"), err == nil && st.State == 'Z'
}

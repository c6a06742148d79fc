// Package crashtest shows tests what a crash leaves on disk. It has strace record what a program does to a folder, and makes
// that folder anew as it was after any number of these steps: as the death of the program leaves it, or as a power cut does,
// with the content lost of what was not synced.
package crashtest

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A Journal is what a program did to a folder, step by step.
type Journal struct {
	dir   string
	steps []step
}

// A step is one system call. Paths are relative to the folder.
type step struct {
	kind     string // mkdir, create, write, truncate, rename, remove, link, symlink, mknod, sync
	path, to string
	data     []byte
	size     int64
}

// A Cut says what became of a file that was written and not synced, although its name is there; path is relative.
type Cut func(path string, data []byte) []byte

// Cuts are those that file systems are known for. The first leaves all as it is: the program died, not the machine.
var Cuts = map[string]Cut{
	"":       nil,
	"zeroed": func(_ string, data []byte) []byte { return make([]byte, len(data)) },
}

// Record runs the test named run of this test binary once more, in a process of its own with env, and returns what it does to
// dir, which must be empty. It skips the test where there is no strace.
func Record(t *testing.T, dir, run string, env ...string) Journal {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: ", err)
	}
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-y", "-xx", "-s", "10000000", "-e", "signal=none", "-o", out,
		"-e", "trace=openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,splice,fallocate,truncate,ftruncate,?rename,renameat,renameat2,"+
			"?mkdir,mkdirat,?rmdir,?unlink,unlinkat,?link,linkat,?symlink,symlinkat,?mknod,mknodat,fsync,fdatasync,syncfs,sync",
		os.Args[0], "-test.run", "^"+run+"$", "-test.count", "1")
	cmd.Env = append(os.Environ(), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s in a process of its own: %v\n%s", run, err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	j := Journal{dir: dir}
	if err := j.parse(data); err != nil {
		t.Fatal(err)
	}
	return j
}

// Len is the number of steps.
func (j Journal) Len() int { return len(j.steps) }

// String describes the step after which n steps are done.
func (j Journal) String(n int) string {
	if n == 0 {
		return "nothing"
	}
	s := j.steps[n-1]
	return fmt.Sprintf("%d: %s %s %s (%d bytes)", n, s.kind, s.path, s.to, len(s.data))
}

var (
	finished   = regexp.MustCompile(`^\d+ +(\w+)\((.*)\) += (-?\d+|\?)(<.*>)?`)
	unfinished = regexp.MustCompile(`^(\d+) +(\w+\(.*) <unfinished \.\.\.>$`)
	resumed    = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
)

// parse reads strace's output. A call that another thread's call interrupts on paper is in two lines; it takes effect
// where it ends.
func (j *Journal) parse(data []byte) error {
	begun := map[string]string{}
	for raw := range bytes.Lines(data) {
		line := strings.TrimSuffix(string(raw), "\n")
		if m := unfinished.FindStringSubmatch(line); m != nil {
			begun[m[1]] = m[2]
			continue
		}
		if m := resumed.FindStringSubmatch(line); m != nil {
			line = m[1] + " " + begun[m[1]] + m[2]
		}
		m := finished.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if result, err := strconv.Atoi(m[3]); err == nil && result >= 0 {
			if err := j.call(m[1], arguments(m[2]), result, m[4]); err != nil {
				return fmt.Errorf("%w: %.300s", err, line)
			}
		}
	}
	return nil
}

// arguments cuts up the arguments of a call; there are no commas in what strace prints in hexadecimal.
func arguments(text string) []string {
	var args []string
	for _, a := range strings.Split(text, ",") {
		args = append(args, strings.TrimSpace(a))
	}
	return args
}

// unhex reads a string as -xx prints it: "\x61\x62".
func unhex(text string) []byte {
	text = strings.Trim(strings.TrimSuffix(text, "..."), `"`)
	var out []byte
	for i := 0; i+3 < len(text); i += 4 {
		b, err := strconv.ParseUint(text[i+2:i+4], 16, 8)
		if err != nil {
			return nil
		}
		out = append(out, byte(b))
	}
	return out
}

// fdPath is the path in a descriptor as -y prints it: 3<\x2f\x74…>.
func fdPath(arg string) string {
	_, rest, found := strings.Cut(arg, "<")
	if !found {
		return ""
	}
	return string(unhex(`"` + strings.TrimSuffix(rest, ">") + `"`))
}

// at is the path of a call with a folder's descriptor and a name.
func at(dir, name string) string {
	path := string(unhex(name))
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(fdPath(dir), path)
}

// inside returns a path relative to the folder, and false for one outside.
func (j *Journal) inside(path string) (string, bool) {
	rel, err := filepath.Rel(j.dir, path)
	return rel, err == nil && filepath.IsLocal(rel)
}

func (j *Journal) add(s step) {
	path, ok := j.inside(s.path)
	if !ok && s.kind != "sync" {
		return
	}
	s.path = path
	if s.to != "" && s.kind != "symlink" {
		s.to, _ = j.inside(s.to)
	}
	j.steps = append(j.steps, s)
}

func (j *Journal) call(name string, args []string, result int, opened string) error {
	switch name {
	case "openat", "openat2":
		if strings.Contains(args[2], "O_CREAT") || strings.Contains(args[2], "O_TRUNC") {
			kind := "create"
			if strings.Contains(args[2], "O_TRUNC") {
				kind = "truncate"
			}
			j.add(step{kind: kind, path: fdPath(opened)})
		}
	case "write":
		j.add(step{kind: "write", path: fdPath(args[0]), data: unhex(args[1])[:min(result, len(unhex(args[1])))], size: -1})
	case "pwrite64":
		offset, err := strconv.ParseInt(args[3], 10, 64)
		if err != nil {
			return err
		}
		j.add(step{kind: "write", path: fdPath(args[0]), data: unhex(args[1])[:result], size: offset})
	case "ftruncate":
		size, err := strconv.ParseInt(args[1], 10, 64)
		if err != nil {
			return err
		}
		j.add(step{kind: "resize", path: fdPath(args[0]), size: size})
	case "mkdir":
		j.add(step{kind: "mkdir", path: string(unhex(args[0]))})
	case "mkdirat":
		j.add(step{kind: "mkdir", path: at(args[0], args[1])})
	case "rename":
		j.add(step{kind: "rename", path: string(unhex(args[0])), to: string(unhex(args[1]))})
	case "renameat", "renameat2":
		j.add(step{kind: "rename", path: at(args[0], args[1]), to: at(args[2], args[3])})
	case "unlink", "rmdir":
		j.add(step{kind: "remove", path: string(unhex(args[0]))})
	case "unlinkat":
		j.add(step{kind: "remove", path: at(args[0], args[1])})
	case "linkat":
		j.add(step{kind: "link", path: at(args[0], args[1]), to: at(args[2], args[3])})
	case "symlinkat":
		j.add(step{kind: "symlink", path: at(args[1], args[2]), to: string(unhex(args[0]))})
	case "fsync", "fdatasync":
		if rel, ok := j.inside(fdPath(args[0])); ok {
			j.steps = append(j.steps, step{kind: "fsync", path: rel})
		}
	case "syncfs", "sync":
		j.steps = append(j.steps, step{kind: "sync"})
	default:
		if _, ok := j.inside(fdPath(args[0])); ok {
			return fmt.Errorf("a call that is not understood: %s", name)
		}
	}
	return nil
}

// tree is a folder in memory, by relative path.
type tree map[string]*node

type node struct {
	dir    bool
	link   string
	data   []byte
	synced bool
}

// after returns the folder as it is after n steps.
func (j Journal) after(n int) tree {
	tr := tree{".": {dir: true}}
	for _, s := range j.steps[:n] {
		tr.apply(s)
	}
	return tr
}

func (tr tree) apply(s step) {
	f := tr[s.path]
	switch s.kind {
	case "mkdir":
		tr[s.path] = &node{dir: true}
	case "create", "truncate":
		if f == nil {
			tr[s.path] = &node{}
		} else if s.kind == "truncate" {
			f.data, f.synced = nil, false
		}
	case "write":
		if f == nil {
			return // it was removed and is still open
		}
		offset := s.size
		if offset < 0 {
			offset = int64(len(f.data)) // what is written here is written from the first byte to the last
		}
		if grow := offset + int64(len(s.data)) - int64(len(f.data)); grow > 0 {
			f.data = append(f.data, make([]byte, grow)...)
		}
		copy(f.data[offset:], s.data)
		f.synced = false
	case "resize":
		if f != nil {
			f.data = append(slices.Clone(f.data), make([]byte, max(0, s.size-int64(len(f.data))))...)[:s.size]
		}
	case "rename":
		tr.rename(s.path, s.to)
	case "remove":
		delete(tr, s.path)
	case "link":
		tr[s.to] = f
	case "symlink":
		tr[s.path] = &node{link: s.to}
	case "fsync":
		if f != nil {
			f.synced = true
		}
	case "sync":
		for _, f := range tr {
			f.synced = true
		}
	}
}

func (tr tree) rename(from, to string) {
	moved := map[string]*node{}
	for path, f := range tr {
		if path == from || strings.HasPrefix(path, from+"/") {
			moved[to+strings.TrimPrefix(path, from)] = f
			delete(tr, path)
		}
	}
	for path, f := range moved {
		tr[path] = f
	}
}

// Restore makes the folder anew, which must not be there, as it was after n steps. With a cut, what was not synced by then
// has lost its content.
func (j Journal) Restore(t *testing.T, n int, cut Cut) {
	t.Helper()
	tr := j.after(n)
	paths := make([]string, 0, len(tr))
	for path := range tr {
		paths = append(paths, path)
	}
	slices.Sort(paths) // folders before what is in them
	for _, path := range paths {
		f, full := tr[path], filepath.Join(j.dir, path)
		data := f.data
		if cut != nil && !f.synced {
			data = cut(path, data)
		}
		var err error
		switch {
		case f.dir:
			err = os.MkdirAll(full, 0o755)
		case f.link != "":
			err = os.Symlink(f.link, full)
		default:
			err = os.WriteFile(full, data, 0o600)
		}
		if err != nil {
			t.Fatalf("after %s: %v", j.String(n), err)
		}
	}
}

// Check fails the test unless all steps together give the folder that is there: then none was misunderstood.
func (j Journal) Check(t *testing.T) {
	t.Helper()
	tr := j.after(len(j.steps))
	seen := 0
	err := filepath.WalkDir(j.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := j.inside(path)
		f := tr[rel]
		if f == nil {
			return fmt.Errorf("%s is there, and no step made it", rel)
		}
		seen++
		if !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		if err == nil && !bytes.Equal(data, f.data) {
			err = fmt.Errorf("%s has %d bytes, the steps give %d", rel, len(data), len(f.data))
		}
		return err
	})
	if err == nil && seen != len(tr) {
		err = fmt.Errorf("%d files and folders are there, the steps give %d", seen, len(tr))
	}
	if err != nil {
		t.Fatal("the journal is not what happened: ", err)
	}
}

package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`

const group = `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
mail:x:8:
users:x:100:
www-data:x:33:
operator:x:37:
nogroup:x:65534:
`

// pgrep is here since Debian's busybox has no such applet, and that of procps brings six libraries.
const pgrep = `#!/bin/sh
# pgrep NAME: the ids of the processes whose name contains NAME.
status=1
for dir in /proc/[0-9]*; do
	read -r comm 2>/dev/null <"$dir/comm" || continue
	case $comm in *"$1"*) [ "${dir#/proc/}" = "$$" ] || { echo "${dir#/proc/}"; status=0; } ;; esac
done
exit $status
`

// busyboxTree makes a small root file system from Debian's packages busybox, libc6 and util-linux (for ipcs alone).
//
// It has to be the dynamically linked busybox: the shell of busybox-static runs its own applets without looking at the
// files, so that a masked /bin/ls would still work. And the applets have to be hard links: masking a symbolic link masks
// the busybox behind it, and with it everything else.
func busyboxTree(ctx context.Context, work string) (*Tree, error) {
	t := NewTree()
	for _, source := range []struct {
		name  string
		files []string
	}{
		{"busybox", []string{"bin/busybox"}},
		{"libc6", []string{"lib64/ld-linux-*", "lib/ld-linux-*", "lib/*-linux-gnu/ld-linux-*", "lib/*-linux-gnu/libc.so.6", "lib/*-linux-gnu/libresolv.so.2"}},
		{"util-linux", []string{"usr/bin/ipcs"}},
	} {
		deb, err := debianPackage(ctx, filepath.Join(work, "debs"), source.name)
		if err != nil {
			return nil, err
		}
		n, err := unpack(ctx, t, deb, source.files...)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("%s holds none of %s", deb, source.files)
		}
	}
	applets, err := listApplets(ctx, t.entries["bin/busybox"].data)
	if err != nil {
		return nil, err
	}
	for _, applet := range applets {
		t.Link(applet, "bin/busybox")
	}
	t.File("usr/bin/pgrep", 0o755, []byte(pgrep))
	t.Text("etc/passwd", passwd).Text("etc/group", group)
	t.Dir("tmp", 0o1777).Dir("var/tmp", 0o1777).Dir("root", 0o700)
	t.Dir("home", 0o755).Dir("var/run", 0o755).Dir("var/www", 0o755).Dir("dev", 0o755).Dir("proc", 0o555).Dir("sys", 0o555)
	return t, nil
}

// listApplets asks busybox which commands it is. It runs on the host, whose libc is the same.
func listApplets(ctx context.Context, busybox []byte) ([]string, error) {
	dir, err := os.MkdirTemp("", "busybox-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "busybox")
	if err := os.WriteFile(file, busybox, 0o755); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, file, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list-full: %w", err)
	}
	return strings.Fields(string(out)), nil
}

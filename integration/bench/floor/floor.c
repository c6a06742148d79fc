/*
 * floor: what the kernel itself asks for the start of a pod: the same namespaces, cgroups, and mounts, made by
 * plain system calls with nothing around them. It prints one line a start: milliseconds until the program runs.
 *
 *	floor COUNT ROOTFS
 *
 * ROOTFS is a folder with an executable /wait. What is left out of the system calls: those for the veth pair with its
 * addresses, and for the load of the seccomp filter (together about a millisecond).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static void must(int result, const char *what)
{
	if (result < 0)
		fail(what);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

/* The hierarchies of cgroup v1, or v2's one. What is not mounted is passed over. */
static const char *const groups[] = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd", "."};

static void put(const char *dir, const char *file, const char *value)
{
	char path[512];
	snprintf(path, sizeof path, "%s/%s", dir, file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return; /* of the other version of cgroups */
	(void)!write(fd, value, strlen(value));
	close(fd);
}

static void copy(const char *from, const char *to, const char *file)
{
	char path[512], value[256];
	snprintf(path, sizeof path, "%s/%s", from, file);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	ssize_t n = read(fd, value, sizeof value - 1);
	close(fd);
	if (n > 0) {
		value[n] = 0;
		put(to, file, value);
	}
}

static int is_group(const char *dir)
{
	char path[512];
	snprintf(path, sizeof path, "%s/cgroup.procs", dir);
	return access(path, W_OK) == 0;
}

static void enter_groups(int pid)
{
	char parent[256], dir[300], number[16];
	snprintf(number, sizeof number, "%d", pid);
	for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
		snprintf(parent, sizeof parent, "/sys/fs/cgroup/%s", groups[i]);
		if (!is_group(parent))
			continue;
		snprintf(dir, sizeof dir, "%s/floor-%d", parent, pid);
		must(mkdir(dir, 0755), dir);
		copy(parent, dir, "cpuset.cpus");
		copy(parent, dir, "cpuset.mems");
		put(dir, "cpu.shares", "1024");
		put(dir, "cpu.cfs_quota_us", "100000");
		put(dir, "memory.limit_in_bytes", "268435456");
		put(dir, "cpu.max", "100000 100000");
		put(dir, "memory.max", "268435456");
		put(dir, "cgroup.procs", number);
	}
}

static void leave_groups(int pid)
{
	char dir[300];
	for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
		snprintf(dir, sizeof dir, "/sys/fs/cgroup/%s/floor-%d", groups[i], pid);
		rmdir(dir);
	}
}

static void node(const char *path, int minor)
{
	must(mknod(path, S_IFCHR | 0666, (1 << 8) | minor), path);
}

/* What a container's first process does before it becomes the workload. */
static void become(const char *rootfs, const char *upper)
{
	static const char *const masked[] = {"/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list"};
	static const char *const readonly[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"};
	char options[1024], work[300], root[300], data[300];
	snprintf(work, sizeof work, "%s/work", upper);
	snprintf(data, sizeof data, "%s/data", upper);
	snprintf(root, sizeof root, "%s/root", upper);
	must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "slave");
	must(mkdir(work, 0755), work);
	must(mkdir(data, 0755), data);
	must(mkdir(root, 0755), root);
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", rootfs, data, work);
	must(mount("overlay", root, "overlay", 0, options), "overlay");
	must(chdir(root), root);
	static const char *const dirs[] = {"proc", "dev", "sys", "old"};
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
		if (mkdir(dirs[i], 0755) < 0 && errno != EEXIST)
			fail(dirs[i]);
	must(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
	must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=65536k"), "dev");
	must(mkdir("dev/pts", 0755), "dev/pts");
	must(mkdir("dev/mqueue", 0755), "dev/mqueue");
	must(mkdir("dev/shm", 01777), "dev/shm");
	must(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"), "devpts");
	must(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "mqueue");
	must(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=65536k"), "shm");
	must(mount("sysfs", "sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "sysfs");
	node("dev/null", 3);
	node("dev/zero", 5);
	node("dev/full", 7);
	node("dev/random", 8);
	node("dev/urandom", 9);
	must(syscall(SYS_pivot_root, ".", "old"), "pivot_root");
	must(chdir("/"), "/");
	must(umount2("old", MNT_DETACH), "old");
	for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
		mount("/dev/null", masked[i], NULL, MS_BIND, NULL); /* not all kernels have all */
	for (size_t i = 0; i < sizeof readonly / sizeof *readonly; i++)
		if (mount(readonly[i], readonly[i], NULL, MS_BIND | MS_REC, NULL) == 0)
			mount(NULL, readonly[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	execl("/wait", "/wait", (char *)NULL);
	fail("/wait");
}

/* start returns the milliseconds until the program runs. */
static double start(const char *rootfs)
{
	char upper[] = "/tmp/floor-XXXXXX";
	int ready[2], go[2];
	char byte;
	if (!mkdtemp(upper))
		fail(upper);
	double began = now();
	must(pipe2(ready, O_CLOEXEC), "pipe");
	must(pipe2(go, O_CLOEXEC), "pipe");
	int pid = syscall(SYS_clone, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD, 0, 0, 0, 0);
	must(pid, "clone");
	if (pid == 0) {
		close(ready[0]);
		close(go[1]);
		if (read(go[0], &byte, 1) != 1)
			_exit(1);
		become(rootfs, upper);
	}
	close(ready[1]);
	close(go[0]);
	enter_groups(pid);
	(void)!write(go[1], "", 1);
	(void)!read(ready[0], &byte, 1); /* ends with the exec, which closes the child's end */
	double took = now() - began;
	int status;
	if (waitpid(pid, &status, WNOHANG) == pid)
		fail("the program did not start");
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	close(ready[0]);
	close(go[1]);
	leave_groups(pid);
	char command[400];
	snprintf(command, sizeof command, "rm -rf %s", upper);
	return system(command) == 0 ? took : -1;
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "floor COUNT ROOTFS\n");
		return 2;
	}
	for (int i = atoi(argv[1]); i > 0; i--) {
		printf("%.3f\n", start(argv[2]));
		fflush(stdout);
	}
	return 0;
}

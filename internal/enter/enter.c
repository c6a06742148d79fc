//go:build ignore

/*
 * enter: starts a further process in a container: the exec of a probe, at a fraction of the cost of a Go program. It has no
 * libc and allocates nothing; what to do is in a plan, a file that berth has made (plan.go has the format and says what
 * each part means), and the steps and their order are those of libcontainer's exec, with which a test compares it.
 *
 * Descriptors it is started with: 0, 1, 2 the workload's own; 3 the plan; 4 a SOCK_SEQPACKET socket for what became of it;
 * 5 a pidfd of the container's init; 6 the node's /proc.
 *
 *	keeper
 *	  ├── first    joins the cgroups and namespaces, makes the second, says its pid, ends
 *	  └── second   made with CLONE_PARENT, so the keeper's child: becomes the workload
 *
 * Each message is a struct report. "started" comes with a pidfd of the second; after it the socket's end says that the
 * workload runs, and "failed" that it does not.
 *
 * The first line keeps the go command from taking this file for a part of the Go package.
 */

#include "sys.h"

enum { PLAN = 3, REPORT = 4, INIT = 5, FIFO = 5, PROC = 6 };

/* The plan; plan.go writes it and explains the fields. Offsets count from its start; 0 is none. */
enum { MAGIC = 0x31746e65 };
enum { NO_NEW_PRIVS = 1, OWN_CGROUPNS = 2, FIND_HOME = 4, SET_UMASK = 8, FILTER = 16 };

struct rlimit { u32 resource, pad; u64 soft, hard; };

struct plan {
	u32 magic, size, namespaces, options;
	u32 uid, gid, umask, filter_flags;
	u32 groups, groups_len, rlimits, rlimits_len;
	u32 args, args_len, env, env_len;
	u32 cgroups, cgroups_len, filter, filter_len;
	u32 path, cwd, keyring, apparmor;
	u32 oom, init;
	u64 bounding, effective, permitted, inheritable, ambient;
};

/* The steps that can fail; plan.go has their names. */
enum {
	STEP_PLAN = 1, STEP_OOM, STEP_CGROUP, STEP_RLIMIT, STEP_NAMESPACES, STEP_CGROUPNS, STEP_ROOT, STEP_CLONE, STEP_SESSION,
	STEP_KEYRING, STEP_NO_NEW_PRIVS, STEP_SECCOMP, STEP_CWD, STEP_HOME, STEP_BOUNDING, STEP_STDIO, STEP_GROUPS, STEP_GID,
	STEP_UID, STEP_CWD_OUTSIDE, STEP_CAPS, STEP_APPARMOR, STEP_COMMAND, STEP_NOT_IN_PATH, STEP_RELATIVE,
	STEP_JOIN, STEP_UNSHARE, STEP_PROPAGATION, STEP_ROOTFS, STEP_TREE, STEP_TARGET, STEP_TARGET_REFUSED, STEP_MOUNT, STEP_ATTRIBUTES,
	STEP_DEV, STEP_PIVOT, STEP_NULL, STEP_MAKE_CWD, STEP_READONLY, STEP_MASK,
};

enum { STARTED = 1, FAILED = 2 };

struct report { u32 kind; i32 pid; u32 step; i32 error; };

static const u8 *base;
static char home[4096];
static char found[4096];
static char text[8192];

static u64 length(const char *s)
{
	u64 n = 0;

	while (s[n])
		n++;
	return n;
}

static void *at(u32 offset) { return (void *)(base + offset); }

__attribute__((noreturn)) static void end(int status)
{
	for (;;)
		call(SYS_exit_group, status);
}

struct iovec { void *base; u64 len; };
struct msghdr { void *name; u32 namelen, pad; struct iovec *iov; u64 iovlen; void *control; u64 controllen; i32 flags, pad2; };

static void send(struct report *r, int fd)
{
	struct iovec iov = { r, sizeof(*r) };
	struct { u64 len; i32 level, type, fd, pad; } control = { 20, SOL_SOCKET, SCM_RIGHTS, fd, 0 };
	struct msghdr msg = { 0, 0, 0, &iov, 1, 0, 0, 0, 0 };

	if (fd >= 0) {
		msg.control = &control;
		msg.controllen = sizeof(control);
	}
	call(SYS_sendmsg, REPORT, &msg, MSG_NOSIGNAL);
}

__attribute__((noreturn)) static void fail(u32 step, long error)
{
	struct report r = { FAILED, 0, step, (i32)-error };

	send(&r, -1);
	end(255);
}

static void check(u32 step, long result)
{
	if (result < 0)
		fail(step, result);
}

static long write_file(int dir, const char *path, const char *data)
{
	long fd = call(SYS_openat, dir, path, O_WRONLY | O_CLOEXEC);
	long n;

	if (fd < 0)
		return fd;
	n = call(SYS_write, fd, data, length(data));
	call(SYS_close, fd);
	return n;
}

static void read_plan(void)
{
	struct stat s;
	const struct plan *p;
	long mem;

	check(STEP_PLAN, call(SYS_fstat, PLAN, &s));
	mem = call(SYS_mmap, 0, s.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, PLAN, 0);
	if (mem < 0 && mem > -4096)
		fail(STEP_PLAN, mem);
	base = (const u8 *)mem;
	p = (const struct plan *)base;
	if (s.size < sizeof(*p) || p->magic != MAGIC || p->size != s.size)
		fail(STEP_PLAN, -EINVAL);
	call(SYS_close, PLAN);
}

/* The keeper ignores signals that the workload must not find ignored. */
static void reset_signals(void)
{
	static const u64 none, action[4]; /* the kernel's sigaction and set: SIG_DFL, no flags, an empty mask */
	u32 sig;

	for (sig = 1; sig <= 64; sig++)
		call(SYS_rt_sigaction, sig, action, 0, sizeof(none)); /* SIGKILL and SIGSTOP refuse, and need it not */
	call(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, &none, 0, sizeof(none));
}

/* What only the node's root may do: the container's own may not even see it. */
static void outside(const struct plan *p)
{
	static u64 all[1024];
	const u32 *cgroups = at(p->cgroups);
	const struct rlimit *limits = at(p->rlimits);
	u32 i;

	/* Before it is not dumpable: /proc/self would be the node's root's no more. */
	if (p->oom)
		check(STEP_OOM, write_file(PROC, "self/oom_score_adj", at(p->oom)));
	/* Not to be looked into, nor traced, by what runs in the container. execve undoes it. */
	call(SYS_prctl, PR_SET_DUMPABLE, 0);
	for (i = 0; i < p->cgroups_len; i++)
		check(STEP_CGROUP, write_file(AT_FDCWD, at(cgroups[i]), "0"));
	for (i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		all[i] = ~0UL;
	/* All CPUs that there may ever be, and not those of the keeper; the cpuset has the last word. */
	call(SYS_sched_setaffinity, 0, sizeof(all), all);
	for (i = 0; i < p->rlimits_len; i++)
		check(STEP_RLIMIT, call(SYS_prlimit64, 0, limits[i].resource, &limits[i].soft, 0));
}

#include "rootfs.h"

/* Waits for a word of the launcher, and ends with it. */
static void await(void)
{
	char word;

	if (call(SYS_read, REPORT, &word, 1) != 1)
		end(255);
}

static void join_all(const struct init *in)
{
	const struct join *j = at(in->join);
	u32 i, rest = in->new & ~(u32)(CLONE_NEWNS | CLONE_NEWPID);

	for (i = 0; i < in->join_len; i++) {
		long fd = call(SYS_openat, AT_FDCWD, at(j[i].path), O_RDONLY | O_CLOEXEC);

		check(STEP_JOIN, fd);
		check(STEP_JOIN, call(SYS_setns, fd, j[i].kind));
		call(SYS_close, fd);
	}
	if (rest)
		check(STEP_UNSHARE, call(SYS_unshare, rest));
}

/* The container's init has a keyring that others may search, as libcontainer's. */
static void share_keyring(long key)
{
	char *s = text;
	u32 field, perm = 0;
	long n = call(SYS_keyctl, KEYCTL_DESCRIBE, key, text, sizeof(text) - 1);

	check(STEP_KEYRING, n);
	text[(u64)n < sizeof(text) ? (u64)n : sizeof(text) - 1] = 0;
	for (field = 0; field < 3; field++) { /* type;uid;gid;permissions in hexadecimal;name */
		while (*s && *s != ';')
			s++;
		s += *s == ';';
	}
	for (; (*s >= '0' && *s <= '9') || (*s >= 'a' && *s <= 'f'); s++)
		perm = perm << 4 | (u32)(*s <= '9' ? *s - '0' : *s - 'a' + 10);
	check(STEP_KEYRING, call(SYS_keyctl, KEYCTL_SETPERM, key, perm | 0x80000));
}

static void join(const struct plan *p)
{
	if (p->options & OWN_CGROUPNS)
		check(STEP_CGROUPNS, call(SYS_unshare, CLONE_NEWCGROUP));
	check(STEP_NAMESPACES, call(SYS_setns, INIT, p->namespaces));
	if (p->namespaces & CLONE_NEWUSER) {
		check(STEP_ROOT, call(SYS_setresgid, 0, 0, 0));
		check(STEP_ROOT, call(SYS_setresuid, 0, 0, 0));
		call(SYS_prctl, PR_SET_DUMPABLE, 0);
	}
	call(SYS_close, INIT);
}

static void set_user(const struct plan *p)
{
	struct stat s;
	u32 i;

	for (i = 0; i < 3; i++) {
		long err = call(SYS_fstat, i, &s);

		check(STEP_STDIO, err);
		if (s.uid == p->uid || s.rdev == 0x103) /* /dev/null */
			continue;
		err = call(SYS_fchown, i, p->uid, -1);
		if (err < 0 && err != -EPERM && err != -EROFS)
			fail(STEP_STDIO, err);
	}
	check(STEP_GROUPS, call(SYS_setgroups, p->groups_len, at(p->groups)));
	check(STEP_GID, call(SYS_setgid, p->gid));
	check(STEP_UID, call(SYS_setuid, p->uid));
}

static void drop_bounding(const struct plan *p)
{
	u32 cap;

	for (cap = 0; call(SYS_prctl, PR_CAPBSET_READ, cap) >= 0; cap++)
		if (!(p->bounding >> cap & 1))
			check(STEP_BOUNDING, call(SYS_prctl, PR_CAPBSET_DROP, cap));
}

static void set_caps(const struct plan *p)
{
	struct { u32 version; i32 pid; } header = { 0x20080522, 0 };
	struct { u32 effective, permitted, inheritable; } data[2];
	u32 cap;
	long err;

	for (cap = 0; cap < 2; cap++) {
		data[cap].effective = (u32)(p->effective >> 32 * cap);
		data[cap].permitted = (u32)(p->permitted >> 32 * cap);
		data[cap].inheritable = (u32)(p->inheritable >> 32 * cap);
	}
	check(STEP_CAPS, call(SYS_capset, &header, data));
	err = call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
	if (err < 0 && err != -EINVAL)
		fail(STEP_CAPS, err);
	for (cap = 0; cap < 64; cap++)
		if (p->ambient >> cap & 1)
			call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap); /* as libcontainer: one that cannot be is left out */
}

struct filter { u16 len; u16 pad[3]; void *code; };

static void load_filter(const struct plan *p)
{
	struct filter f = { (u16)p->filter_len, { 0 }, at(p->filter) };

	check(STEP_SECCOMP, call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, p->filter_flags, &f));
}


/* A working directory that cannot be named from the root is none of the container's. */
static void check_cwd(void)
{
	long err = call(SYS_getcwd, text, sizeof(text));

	check(STEP_CWD_OUTSIDE, err);
	if (text[0] != '/')
		fail(STEP_CWD_OUTSIDE, -ENOENT);
}

static int is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* As strconv.Atoi, whose error nobody looks at: what is no number is 0. */
static u64 number(const char *s, const char *stop)
{
	int negative = s < stop && *s == '-';
	u64 n = 0;

	if (s < stop && (*s == '-' || *s == '+'))
		s++;
	for (; s < stop; s++) {
		if (*s < '0' || *s > '9')
			return 0;
		if (n <= 0xffffffff)
			n = n * 10 + (u64)(*s - '0');
	}
	return negative ? -n : n;
}

/*
 * Looks at one line of /etc/passwd: name:password:uid:gid:gecos:home:shell. If it is of that user it leaves the home in home. As with
 * libcontainer a field that is not there is empty, so that a line that is none may be root's.
 */
static int is_home(const char *line, u32 uid)
{
	const char *stop = line;
	u64 have = 0, h = 5;
	u32 field = 0;

	while (*stop && *stop != '\n')
		stop++;
	while (line < stop && is_space(*line))
		line++;
	while (line < stop && is_space(stop[-1]))
		stop--;
	if (line == stop)
		return 0;
	for (; line <= stop; line++, field++) {
		const char *start = line;

		while (line < stop && *line != ':')
			line++;
		if (field == 2)
			have = number(start, line);
		if (field == 5 && have == uid)
			while (start < line && h < sizeof(home) - 1)
				home[h++] = *start++;
	}
	if (have != uid)
		return 0;
	home[h] = 0;
	return 1;
}

static void find_home(u32 uid)
{
	const char *fallback = "HOME=/";
	u64 have = 0, i, skip = 0;
	long fd, n;

	for (i = 0; fallback[i]; i++)
		home[i] = fallback[i];
	fd = call(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY | O_CLOEXEC | 04000 /* O_NONBLOCK: it may be a FIFO */);
	if (fd < 0)
		return;
	for (;;) {
		n = call(SYS_read, fd, text + have, sizeof(text) - 1 - have);
		have += n > 0 ? (u64)n : 0;
		text[have] = 0;
		/* Each whole line; the last may have no end. A line that is longer than the buffer is none. */
		for (;;) {
			for (i = 0; i < have && text[i] != '\n'; i++)
				;
			if (i == have && n > 0)
				break;
			if (have && !skip && is_home(text, uid))
				goto done;
			skip = 0;
			if (i >= have) {
				have = 0;
				break;
			}
			have -= i + 1;
			for (u64 j = 0; j <= have; j++)
				text[j] = text[i + 1 + j];
		}
		if (n <= 0)
			break;
		if (have == sizeof(text) - 1) {
			have = 0;
			skip = 1;
		}
	}
done:
	call(SYS_close, fd);
}

/* As os/exec's findExecutable. */
static long executable(const char *path)
{
	struct stat s;
	long err = call(SYS_fstatat, AT_FDCWD, path, &s, 0);

	if (err < 0)
		return err;
	if ((s.mode & S_IFMT) == S_IFDIR)
		return -EISDIR;
	err = call(SYS_faccessat2, AT_FDCWD, path, X_OK, AT_EACCESS);
	if (err == 0 || (err != -ENOSYS && err != -EPERM))
		return err;
	return s.mode & 0111 ? 0 : -EACCES;
}

static int has_slash(const char *s)
{
	for (; *s; s++)
		if (*s == '/')
			return 1;
	return 0;
}

/* As os/exec's LookPath. The folders of the path are clean, and none is empty. */
static const char *look_up(const struct plan *p, const char *name)
{
	const char *dir = p->path ? at(p->path) : "";
	u64 n = length(name);

	if (has_slash(name)) {
		check(STEP_COMMAND, executable(name));
		return name;
	}
	while (*dir) {
		u64 d = 0, i = 0;

		while (dir[d] && dir[d] != ':')
			d++;
		if (d + n + 3 <= sizeof(found)) {
			for (u64 j = 0; j < d; j++)
				found[i++] = dir[j];
			if (found[i - 1] != '/')
				found[i++] = '/';
			for (u64 j = 0; j <= n; j++)
				found[i++] = name[j];
			if (n && !executable(found)) {
				if (found[0] != '/')
					fail(STEP_RELATIVE, -ENOENT);
				return found;
			}
		}
		dir += d + (dir[d] == ':');
	}
	fail(STEP_NOT_IN_PATH, -ENOENT);
}

static const char *message(long error)
{
	switch (-error) {
	case EPERM: return "operation not permitted";
	case ENOENT: return "no such file or directory";
	case E2BIG: return "argument list too long";
	case ENOEXEC: return "exec format error";
	case ENOMEM: return "cannot allocate memory";
	case EACCES: return "permission denied";
	case ETXTBSY: return "text file busy";
	case ELOOP: return "too many levels of symbolic links";
	case EINVAL: return "invalid argument";
	default: return "it cannot be executed";
	}
}

/* What libcontainer's init does when it is too late to tell its parent: some words for whoever reads stderr, and 255. */
__attribute__((noreturn)) static void not_executed(const char *path, long error)
{
	const char *words[] = { "exec ", path, ": ", message(error), "\n" };
	u32 i;

	for (i = 0; i < 5; i++)
		call(SYS_write, 2, words[i], length(words[i]));
	end(255);
}

/* Turns a list of offsets into the list of pointers that execve wants. Its end is there already. */
static char **pointers(u32 list, u32 len)
{
	u64 *v = at(list);
	u32 i;

	for (i = 0; i < len; i++)
		v[i] += (u64)base;
	return (char **)v;
}

__attribute__((noreturn)) static void second(const struct plan *p)
{
	char **args = pointers(p->args, p->args_len), **env = pointers(p->env, p->env_len);
	const char *command;
	long label = -1, cwd;

	check(STEP_SESSION, call(SYS_setsid));
	/* By the node's /proc: what the container has mounted on its own is not to be trusted. */
	if (p->apparmor) {
		label = call(SYS_openat, PROC, "self/attr/apparmor/exec", O_WRONLY | O_CLOEXEC);
		if (label == -ENOENT) /* before Linux 5.1 */
			label = call(SYS_openat, PROC, "self/attr/exec", O_WRONLY | O_CLOEXEC);
		check(STEP_APPARMOR, label);
	}
	call(SYS_close, PROC);
	if (p->keyring) {
		long err = call(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, at(p->keyring));

		if (err < 0 && err != -ENOSYS)
			fail(STEP_KEYRING, err);
		if (p->init && err >= 0)
			share_keyring(err);
	}
	if (p->init)
		make_root(at(p->init), at(p->cwd));
	if (p->options & NO_NEW_PRIVS)
		check(STEP_NO_NEW_PRIVS, call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1));
	if (p->options & SET_UMASK)
		call(SYS_umask, p->umask);
	if (p->init)
		await(); /* until it is on record */
	if (p->options & FILTER && !(p->options & NO_NEW_PRIVS))
		load_filter(p); /* while it is root and may */

	call(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
	/* Once as the container's root, and where that may not, as its user. */
	cwd = call(SYS_chdir, at(p->cwd));
	if (cwd != -EPERM && cwd != -EACCES)
		check(STEP_CWD, cwd);
	if (p->options & FIND_HOME) {
		find_home(p->uid);
		env[p->env_len] = home; /* the plan has room for one more */
	}
	drop_bounding(p);
	check(STEP_CAPS, call(SYS_prctl, PR_SET_KEEPCAPS, 1));
	set_user(p);
	if (cwd)
		check(STEP_CWD, call(SYS_chdir, at(p->cwd)));
	check_cwd();
	check(STEP_CAPS, call(SYS_prctl, PR_SET_KEEPCAPS, 0));
	set_caps(p);
	if (p->apparmor) {
		check(STEP_APPARMOR, call(SYS_write, label, at(p->apparmor), length(at(p->apparmor))));
		call(SYS_close, label);
	}
	command = look_up(p, args[0]);
	if (p->options & FILTER && p->options & NO_NEW_PRIVS)
		load_filter(p); /* as late as can be: the fewer calls has the workload's filter to allow */
	/* Nothing of ours may be the command's path: /proc/self/fd/N. The end of the socket says: it runs, or waits for its start. */
	call(SYS_close, REPORT);
	if (p->init) {
		if (call(SYS_write, FIFO, "0", 1) != 1)
			end(255);
		call(SYS_close, FIFO);
	}
	not_executed(command, call(SYS_execve, command, args, env));
}

__attribute__((noreturn, used)) void enter(void)
{
	struct report r = { STARTED, 0, 0, 0 };
	const struct plan *p;
	const struct init *in = 0;
	i32 pidfd = -1;
	long pid;

	call(SYS_prctl, PR_SET_NAME, "berth-enter"); /* not the number of a descriptor */
	read_plan();
	p = (const struct plan *)base;
	reset_signals();
	if (p->init) {
		in = at(p->init);
		await(); /* until it is in its cgroups */
	}
	outside(p);
	if (in)
		join_all(in);
	else
		join(p);
	/* Init is a child of this one, and when that has ended of the subreaper, the keeper. */
	pid = call(SYS_clone, (in ? in->new & (CLONE_NEWNS | CLONE_NEWPID) : CLONE_PARENT) | CLONE_PIDFD | SIGCHLD, 0, &pidfd);
	check(STEP_CLONE, pid);
	if (pid == 0)
		second(p);
	r.pid = (i32)pid;
	send(&r, pidfd);
	end(0);
}

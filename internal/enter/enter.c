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

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long u64;

#if defined(__x86_64__)

enum {
	SYS_write = 1, SYS_close = 3, SYS_fstat = 5, SYS_mmap = 9, SYS_rt_sigaction = 13, SYS_rt_sigprocmask = 14, SYS_sendmsg = 46, SYS_clone = 56, SYS_execve = 59,
	SYS_getcwd = 79, SYS_chdir = 80, SYS_fchown = 93, SYS_umask = 95, SYS_setuid = 105, SYS_setgid = 106, SYS_setsid = 112,
	SYS_setgroups = 116, SYS_setresuid = 117, SYS_setresgid = 119, SYS_capset = 126, SYS_prctl = 157,
	SYS_sched_setaffinity = 203, SYS_exit_group = 231, SYS_keyctl = 250, SYS_openat = 257, SYS_fstatat = 262,
	SYS_unshare = 272, SYS_prlimit64 = 302, SYS_setns = 308, SYS_seccomp = 317, SYS_read = 0,
	SYS_close_range = 436, SYS_faccessat2 = 439,
};

struct stat {
	u64 dev, ino, nlink;
	u32 mode, uid, gid, pad;
	u64 rdev, size, rest[11];
};

static long call6(long n, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return ret;
}

/* The stack is aligned for calls, which the kernel leaves to us. */
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall enter\n");

#elif defined(__aarch64__)

enum {
	SYS_getcwd = 17, SYS_faccessat2 = 439, SYS_chdir = 49, SYS_fchown = 55, SYS_openat = 56, SYS_close = 57, SYS_read = 63,
	SYS_write = 64, SYS_fstatat = 79, SYS_fstat = 80, SYS_capset = 91, SYS_exit_group = 94, SYS_unshare = 97,
	SYS_sched_setaffinity = 122, SYS_rt_sigaction = 134, SYS_rt_sigprocmask = 135, SYS_setgid = 144, SYS_setuid = 146, SYS_setresuid = 147, SYS_setresgid = 149,
	SYS_setsid = 157, SYS_setgroups = 159, SYS_umask = 166, SYS_prctl = 167, SYS_sendmsg = 211, SYS_keyctl = 219,
	SYS_clone = 220, SYS_execve = 221, SYS_mmap = 222, SYS_prlimit64 = 261, SYS_setns = 268, SYS_seccomp = 277,
	SYS_close_range = 436,
};

struct stat {
	u64 dev, ino;
	u32 mode, nlink, uid, gid;
	u64 rdev, pad, size, rest[9];
};

static long call6(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tbl enter\n");

#else
#error "no system calls for this architecture"
#endif

#define call(n, ...) call_(n, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define call_(n, a, b, c, d, e, f, ...) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

enum { EPERM = 1, ENOENT = 2, ENOEXEC = 8, ENOMEM = 12, EACCES = 13, EISDIR = 21, EINVAL = 22, EROFS = 30, E2BIG = 7, ENOSYS = 38,
	ELOOP = 40, ETXTBSY = 26 };
enum { AT_FDCWD = -100, AT_EACCESS = 0x200, X_OK = 1, O_RDONLY = 0, O_WRONLY = 1, O_CLOEXEC = 02000000, S_IFMT = 0170000,
	S_IFDIR = 0040000, SIGCHLD = 17, PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2 };
enum { CLONE_PIDFD = 0x1000, CLONE_PARENT = 0x8000, CLONE_NEWCGROUP = 0x02000000, CLONE_NEWUSER = 0x10000000 };
enum { PR_SET_DUMPABLE = 4, PR_SET_KEEPCAPS = 8, PR_SET_NAME = 15, PR_CAPBSET_READ = 23, PR_CAPBSET_DROP = 24, PR_SET_NO_NEW_PRIVS = 38,
	PR_CAP_AMBIENT = 47, PR_CAP_AMBIENT_RAISE = 2, PR_CAP_AMBIENT_CLEAR_ALL = 4 };
enum { KEYCTL_JOIN_SESSION_KEYRING = 1, SECCOMP_SET_MODE_FILTER = 1, CLOSE_RANGE_CLOEXEC = 4, SOL_SOCKET = 1, SCM_RIGHTS = 1,
	MSG_NOSIGNAL = 0x4000 };

enum { PLAN = 3, REPORT = 4, INIT = 5, PROC = 6 };

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
	u32 oom, pad;
	u64 bounding, effective, permitted, inheritable, ambient;
};

/* The steps that can fail; plan.go has their names. */
enum {
	STEP_PLAN = 1, STEP_OOM, STEP_CGROUP, STEP_RLIMIT, STEP_NAMESPACES, STEP_CGROUPNS, STEP_ROOT, STEP_CLONE, STEP_SESSION,
	STEP_KEYRING, STEP_NO_NEW_PRIVS, STEP_SECCOMP, STEP_CWD, STEP_HOME, STEP_BOUNDING, STEP_STDIO, STEP_GROUPS, STEP_GID,
	STEP_UID, STEP_CWD_OUTSIDE, STEP_CAPS, STEP_APPARMOR, STEP_COMMAND, STEP_NOT_IN_PATH, STEP_RELATIVE,
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

/* A field of /etc/passwd that ends at a colon or with its line. */
static const char *field(const char **s)
{
	const char *start = *s;

	while (**s && **s != ':' && **s != '\n')
		(*s)++;
	return start;
}

/* Looks at one line of /etc/passwd: name:password:uid:gid:gecos:home:shell. If it is of that user it leaves the home in home. */
static int is_home(const char *line, u32 uid)
{
	u64 n = 0, h = 5;
	u32 i;

	for (i = 0; i < 5; i++) {
		const char *s = field(&line);

		if (*line != ':')
			return 0;
		if (i == 2) {
			if (s == line)
				return 0;
			for (; s < line; s++) {
				if (*s < '0' || *s > '9' || n > 0xffffffff)
					return 0;
				n = n * 10 + (u64)(*s - '0');
			}
			if (n != uid)
				return 0;
		}
		line++;
	}
	while (*line && *line != ':' && *line != '\n' && h < sizeof(home) - 1)
		home[h++] = *line++;
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

/* As os/exec's LookPath. */
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
			if (!d)
				found[i++] = '.';
			for (u64 j = 0; j < d; j++)
				found[i++] = dir[j];
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
	}
	if (p->options & NO_NEW_PRIVS)
		check(STEP_NO_NEW_PRIVS, call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1));
	if (p->options & SET_UMASK)
		call(SYS_umask, p->umask);
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
	/* Nothing of ours may be the command's path: /proc/self/fd/N. The end of the socket says: it runs. */
	call(SYS_close, REPORT);
	not_executed(command, call(SYS_execve, command, args, env));
}

__attribute__((noreturn, used)) void enter(void)
{
	struct report r = { STARTED, 0, 0, 0 };
	const struct plan *p;
	i32 pidfd = -1;
	long pid;

	call(SYS_prctl, PR_SET_NAME, "berth-enter"); /* not the number of a descriptor */
	read_plan();
	p = (const struct plan *)base;
	reset_signals();
	outside(p);
	join(p);
	pid = call(SYS_clone, CLONE_PARENT | CLONE_PIDFD | SIGCHLD, 0, &pidfd);
	check(STEP_CLONE, pid);
	if (pid == 0)
		second(p);
	r.pid = (i32)pid;
	send(&r, pidfd);
	end(0);
}

/* A part of enter.c: the kernel, as each architecture has it. Numbers and structures are those of its user-space headers. */

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
	SYS_fchdir = 81, SYS_fstatfs = 138, SYS_pivot_root = 155, SYS_mount = 165, SYS_umount2 = 166, SYS_mkdirat = 258, SYS_unlinkat = 263,
	SYS_symlinkat = 266, SYS_dup3 = 292,
};

enum { O_DIRECTORY = 0200000, O_NOFOLLOW = 0400000 };

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
	SYS_dup3 = 24, SYS_mkdirat = 34, SYS_unlinkat = 35, SYS_symlinkat = 36, SYS_umount2 = 39, SYS_mount = 40, SYS_pivot_root = 41, SYS_fstatfs = 44,
	SYS_fchdir = 50,
};

enum { O_DIRECTORY = 040000, O_NOFOLLOW = 0100000 };

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

/* Those that came late have one number everywhere. */
enum {
	SYS_open_tree = 428, SYS_move_mount = 429, SYS_fsopen = 430, SYS_fsconfig = 431, SYS_fsmount = 432, SYS_openat2 = 437, SYS_mount_setattr = 442,
};

#define call(n, ...) call_(n, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define call_(n, a, b, c, d, e, f, ...) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

enum { EPERM = 1, ENOENT = 2, E2BIG = 7, ENOEXEC = 8, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EEXIST = 17, EXDEV = 18, EISDIR = 21, EINVAL = 22,
	ETXTBSY = 26, EROFS = 30, ENAMETOOLONG = 36, ENOSYS = 38, ELOOP = 40 };
enum { AT_FDCWD = -100, AT_EACCESS = 0x200, X_OK = 1, AT_EMPTY_PATH = 0x1000, AT_RECURSIVE = 0x8000, O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2,
	O_CREAT = 0100, O_EXCL = 0200, O_CLOEXEC = 02000000, O_PATH = 010000000, S_IFMT = 0170000, S_IFDIR = 0040000, S_IFCHR = 0020000, SIGCHLD = 17, PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2 };
enum { CLONE_PIDFD = 0x1000, CLONE_PARENT = 0x8000, CLONE_NEWNS = 0x20000, CLONE_NEWCGROUP = 0x02000000, CLONE_NEWUSER = 0x10000000,
	CLONE_NEWPID = 0x20000000 };
enum { PR_SET_DUMPABLE = 4, PR_SET_KEEPCAPS = 8, PR_SET_NAME = 15, PR_CAPBSET_READ = 23, PR_CAPBSET_DROP = 24, PR_SET_NO_NEW_PRIVS = 38,
	PR_CAP_AMBIENT = 47, PR_CAP_AMBIENT_RAISE = 2, PR_CAP_AMBIENT_CLEAR_ALL = 4 };
enum { KEYCTL_JOIN_SESSION_KEYRING = 1, KEYCTL_SETPERM = 5, KEYCTL_DESCRIBE = 6, SECCOMP_SET_MODE_FILTER = 1, CLOSE_RANGE_CLOEXEC = 4, SOL_SOCKET = 1, SCM_RIGHTS = 1,
	MSG_NOSIGNAL = 0x4000 };
enum { MS_RDONLY = 1, MS_REMOUNT = 32, MS_BIND = 4096, MS_REC = 16384, MS_PRIVATE = 1 << 18, MS_SLAVE = 1 << 19, MNT_DETACH = 2,
	MOUNT_ATTR_RDONLY = 1, MOUNT_ATTR_NOSYMFOLLOW = 0x200000, OPEN_TREE_CLONE = 1, OPEN_TREE_CLOEXEC = O_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 4, MOVE_MOUNT_T_EMPTY_PATH = 0x40,
	FSOPEN_CLOEXEC = 1, FSMOUNT_CLOEXEC = 1, FSCONFIG_SET_FLAG = 0, FSCONFIG_SET_STRING = 1, FSCONFIG_CMD_CREATE = 6,
	RESOLVE_NO_MAGICLINKS = 2, RESOLVE_NO_SYMLINKS = 4, RESOLVE_IN_ROOT = 16, PROC_SUPER_MAGIC = 0x9fa0 };

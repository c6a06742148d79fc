//go:build ignore

/*
 * pause: pid 1 of a pod whose containers share a pid namespace. It waits, reaps what is reparented to it, and ends on
 * SIGINT and SIGTERM with status 0. One page of memory and no libc, since there is one per such pod.
 *
 * Everything is done with blocked signals and rt_sigtimedwait, so there is no handler and no signal to lose: a pid 1
 * without handlers is not killed by signals from inside its namespace, and from outside by SIGKILL only.
 *
 * The first line keeps the go command from taking this file for a part of the Go package.
 */

#if defined(__x86_64__)

enum { SYS_exit = 60, SYS_wait4 = 61, SYS_rt_sigprocmask = 14, SYS_rt_sigtimedwait = 128 };

static long syscall4(long n, long a, long b, long c, long d)
{
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
}

#elif defined(__aarch64__)

enum { SYS_exit = 93, SYS_wait4 = 260, SYS_rt_sigprocmask = 135, SYS_rt_sigtimedwait = 137 };

static long syscall4(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}

#else
#error "no system calls for this architecture"
#endif

enum { SIG_BLOCK = 0, SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, WNOHANG = 1, WALL = 0x40000000 };

#define BIT(sig) (1UL << ((sig) - 1))

__attribute__((noreturn)) void _start(void)
{
	/* The kernel's sigset: 64 bits. */
	unsigned long set = BIT(SIGINT) | BIT(SIGTERM) | BIT(SIGCHLD);

	syscall4(SYS_rt_sigprocmask, SIG_BLOCK, (long)&set, 0, sizeof(set));
	for (;;) {
		/* First reap, then wait: children may have come with us or ended before the signals were blocked. */
		while (syscall4(SYS_wait4, -1, 0, WNOHANG | WALL, 0) > 0)
			;
		long sig = syscall4(SYS_rt_sigtimedwait, (long)&set, 0, 0, sizeof(set));
		if (sig == SIGINT || sig == SIGTERM)
			break;
	}
	for (;;)
		syscall4(SYS_exit, 0, 0, 0, 0);
}

//go:build ignore

/*
 * hold: has a descriptor open for as long as a process lives, whoever dies meanwhile. Descriptor 0 is a pidfd of the process,
 * 1 is what is held; nothing is done with it. One page of memory and no libc, since there is one per container with a terminal.
 *
 * The first line keeps the go command from taking this file for a part of the Go package.
 */

#if defined(__x86_64__)

enum { SYS_exit = 60, SYS_ppoll = 271 };

static long syscall5(long n, long a, long b, long c, long d, long e)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return ret;
}

#elif defined(__aarch64__)

enum { SYS_exit = 93, SYS_ppoll = 73 };

static long syscall5(long n, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
}

#else
#error "no system calls for this architecture"
#endif

enum { POLLIN = 1, EINTR = 4 };

__attribute__((noreturn)) void _start(void)
{
	struct {
		int fd;
		short events, revents;
	} process = { 0, POLLIN, 0 };

	/* A process that is stopped and goes on interrupts the wait. */
	while (syscall5(SYS_ppoll, (long)&process, 1, 0, 0, 0) == -EINTR)
		;
	for (;;)
		syscall5(SYS_exit, 0, 0, 0, 0, 0);
}

/* The workload of the tests: a static program that does one small thing for each word that it is given. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <termios.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void copy(const char *path)
{
	char buf[4096];
	ssize_t n;
	int fd = strcmp(path, "-") ? open(path, O_RDONLY) : 0;
	while ((n = read(fd, buf, sizeof buf)) > 0)
		write(1, buf, n);
	if (fd)
		close(fd);
}

static void link_of(const char *path)
{
	char buf[256];
	ssize_t n = readlink(path, buf, sizeof buf - 1);
	if (n < 0)
		n = 0;
	buf[n] = 0;
	printf("%s\n", buf);
	fflush(stdout);
}

static void fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	while ((e = readdir(d)))
		if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d))
			printf("%s ", e->d_name);
	printf("\n");
	fflush(stdout);
}

/* What nobody but the process itself can see of it. */
static void keyring(void)
{
	char text[256] = "";
	long id = syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3 /* KEY_SPEC_SESSION_KEYRING */, 0);
	if (id < 0) {
		printf("keyring: error %d\n", errno);
		return;
	}
	long described = syscall(SYS_keyctl, 6 /* KEYCTL_DESCRIBE */, id, text, sizeof text);
	printf("keyring: %ld %s, %ld bytes\n", described, text, syscall(SYS_keyctl, 11 /* KEYCTL_READ */, id, NULL, 0));
}

static void self(char **argv)
{
	char text[4096];
	int n = 0;
	prctl(PR_GET_PDEATHSIG, &n);
	printf("pdeathsig %d ", n);
	prctl(PR_GET_CHILD_SUBREAPER, &n);
	printf("subreaper %d ", n);
	printf("dumpable %d keepcaps %d securebits %#x slack %d thp %d\n", prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS),
		prctl(PR_GET_SECUREBITS), prctl(PR_GET_TIMERSLACK), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	prctl(PR_GET_NAME, text);
	printf("name %s argv %s execfn %s secure %lu\n", text, argv[0], (char *)getauxval(AT_EXECFN), getauxval(AT_SECURE));
	printf("parent %d leads its session %d its group %d\n", getppid(), getsid(0) == getpid(), getpgrp() == getpid());
	printf("nice %d scheduler %d io %ld\n", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0), syscall(SYS_ioprio_get, 1, 0));
	mode_t mask = umask(0);
	umask(mask);
	printf("umask %o cwd %s\n", mask, getcwd(text, sizeof text) ? text : strerror(errno));
	for (int fd = 0; fd < 3; fd++)
		printf("fd %d: %#x %#x\n", fd, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
	int tty = open("/dev/tty", O_RDWR);
	printf("tty: %s\n", tty < 0 ? strerror(errno) : "there");
	if (tty >= 0)
		close(tty);
	keyring();
	struct utsname u;
	uname(&u);
	printf("host %s.%s\n", u.nodename, u.domainname);
	for (char **e = environ; *e; e++)
		printf("env %s\n", *e);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "exit"))
			exit(atoi(argv[++i]));
		else if (!strcmp(argv[i], "cat"))
			copy(argv[++i]);
		else if (!strcmp(argv[i], "link"))
			link_of(argv[++i]);
		else if (!strcmp(argv[i], "fds"))
			fds();
		else if (!strcmp(argv[i], "warn"))
			dprintf(2, "%s\n", argv[++i]);
		else if (!strcmp(argv[i], "mkdir"))
			dprintf(1, "mkdir %s\n", mkdir(argv[++i], 0755) ? "refused" : "done");
		else if (!strcmp(argv[i], "env"))
			dprintf(1, "%s\n", getenv(argv[++i]));
		else if (!strcmp(argv[i], "hostname")) {
			struct utsname u;
			uname(&u);
			dprintf(1, "%s\n", u.nodename);
		} else if (!strcmp(argv[i], "tty")) {
			struct winsize w;
			dprintf(1, "tty %d ", isatty(0) && isatty(1) && isatty(2));
			ioctl(0, TIOCGWINSZ, &w);
			dprintf(1, "%dx%d\n", w.ws_col, w.ws_row);
		} else if (!strcmp(argv[i], "self"))
			self(argv);
		else if (!strcmp(argv[i], "done"))
			prctl(PR_SET_NAME, "done"); /* what comes before is */
		else if (!strcmp(argv[i], "pause"))
			for (;;)
				pause();
	}
	return 0;
}

/* The workload of the tests: a static program that does one small thing for each word that it is given. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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
		} else if (!strcmp(argv[i], "pause"))
			for (;;)
				pause();
	}
	return 0;
}

/*
 * A part of enter.c: the mounts of a new container, in libcontainer's order (rootfs_linux.go of runc has it). Nothing that is
 * found in the container's root is trusted: each path is looked up by openat2 within that root, and what is mounted there is
 * mounted on the very file that was found. Whatever is not plain is refused; libcontainer makes the container then.
 */

struct join { u32 path, kind; };
struct remount { u32 path, flags; };
struct attributes { u64 at, set, clear, propagation; };

enum { MOUNT_TREE, MOUNT_ANY, MOUNT_STRICT };

struct mount {
	u32 kind, recursive, target, tree;
	u32 source, type, data;
	u32 attributes, attributes_len, pad;
	u64 flags;
};

enum { READONLY_ROOT = 1 };

struct init {
	u32 join, join_len, new, flags;
	u32 rootfs, propagation, root_propagation;
	u32 mounts, mounts_len, remounts, remounts_len;
	u32 readonly, readonly_len;
	u32 masked, masked_len, pad;
};

static char walk[4096];

/* Looks up what is in a container's root, through links that stay in there. */
static long in_root(long root, const char *path, u64 flags, u64 resolve)
{
	struct { u64 flags, mode, resolve; } how = { flags | O_PATH | O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve };
	long fd = -EAGAIN;
	u32 i;

	/* It is disturbed when something is moved anywhere on the node while it goes up. */
	for (i = 0; i < 1000 && fd == -EAGAIN; i++)
		fd = call(SYS_openat2, root, path, &how, sizeof(how));
	return fd;
}

/* Opens a folder in root, of a path without dots; what is not there is made. */
static long make_folders(long root, const char *path)
{
	u64 n = length(path), i;
	long fd;

	if (n >= sizeof(walk))
		return -ENAMETOOLONG;
	for (i = 0; i <= n; i++)
		walk[i] = path[i];
	for (;;) {
		fd = in_root(root, n ? walk : "/", O_DIRECTORY, 0);
		if (fd != -ENOENT || !n)
			break;
		while (n && walk[--n] != '/')
			;
		walk[n] = 0;
	}
	for (path += n; fd >= 0; ) {
		long err, next;

		while (*path == '/')
			path++;
		if (!*path)
			break;
		for (i = 0; *path && *path != '/'; path++)
			walk[i++] = *path;
		walk[i] = 0;
		err = call(SYS_mkdirat, fd, walk, 0755);
		next = err && err != -EEXIST ? err : call(SYS_openat, fd, walk, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		call(SYS_close, fd);
		fd = next;
	}
	return fd;
}

/* Makes an empty file in root, and the folders above it. */
static long make_file(long root, const char *path)
{
	static char above[4096];
	u64 n = length(path), i;
	long dir, fd;

	if (n >= sizeof(above))
		return -ENAMETOOLONG;
	for (i = 0; i <= n; i++)
		above[i] = path[i];
	while (n && above[--n] != '/')
		;
	above[n] = 0;
	dir = make_folders(root, above);
	if (dir < 0)
		return dir;
	fd = call(SYS_openat, dir, path + n + 1, O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	call(SYS_close, dir);
	return fd;
}

static int is_folder(long fd)
{
	struct stat s;

	return !call(SYS_fstat, fd, &s) && (s.mode & S_IFMT) == S_IFDIR;
}

/* Not on the root itself, and not on anything of the kernel's: what is under /proc is the kernel's word to the container. */
static void check_target(long root, long fd)
{
	struct { long type, rest[20]; } fs;
	struct stat r, s;

	check(STEP_TARGET, call(SYS_fstatfs, fd, &fs));
	check(STEP_TARGET, call(SYS_fstat, root, &r));
	check(STEP_TARGET, call(SYS_fstat, fd, &s));
	if (fs.type == PROC_SUPER_MAGIC || (r.dev == s.dev && r.ino == s.ino))
		fail(STEP_TARGET_REFUSED, -EXDEV);
}

/* Finds or makes the mount point. */
static long find_target(long root, const struct mount *m, int folder)
{
	const char *path = at(m->target);
	int strict = m->kind == MOUNT_STRICT;
	long fd = in_root(root, path, strict ? O_DIRECTORY : 0, strict ? RESOLVE_NO_SYMLINKS : 0);

	if (fd == -ENOENT)
		fd = folder ? make_folders(root, path) : make_file(root, path);
	check(STEP_TARGET, fd);
	check_target(root, fd);
	return fd;
}

static char *append(char *to, const char *s)
{
	while (*s)
		*to++ = *s++;
	*to = 0;
	return to;
}

/* The path of a descriptor in the node's /proc. */
static const char *path_of(long fd)
{
	static char path[32];
	char *end = append(path, "/proc/self/fd/"), digits[8];
	u32 n = 0;

	do
		digits[n++] = (char)('0' + fd % 10);
	while (fd /= 10);
	while (n)
		*end++ = digits[--n];
	*end = 0;
	return path;
}

static void set_attributes(long fd, const struct mount *m)
{
	const struct attributes *a = at(m->attributes);
	u32 i;

	for (i = 0; i < m->attributes_len; i++) {
		u64 attr[4] = { a[i].set, a[i].clear, a[i].propagation, 0 };

		check(STEP_ATTRIBUTES, call(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | a[i].at, attr, sizeof(attr)));
	}
}

static long attach(long tree, long target)
{
	return call(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static void mount_tree(long root, const struct mount *m)
{
	long tree = call(SYS_open_tree, AT_FDCWD, at(m->tree), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (m->recursive ? AT_RECURSIVE : 0));
	long target;

	check(STEP_TREE, tree);
	target = find_target(root, m, is_folder(tree));
	check(STEP_MOUNT, attach(tree, target));
	set_attributes(tree, m);
	call(SYS_close, target);
	call(SYS_close, tree);
}

static void mount_one(long root, const struct mount *m)
{
	long target;

	if (m->kind == MOUNT_TREE) {
		mount_tree(root, m);
		return;
	}
	target = find_target(root, m, 1);
	check(STEP_MOUNT, call(SYS_mount, at(m->source), path_of(target), at(m->type), m->flags, at(m->data)));
	call(SYS_close, target);
}

/* Makes the root a mount of its own, whose parent passes nothing on. */
static long prepare_root(const struct init *in)
{
	u64 all = in->propagation ? in->propagation : MS_SLAVE | MS_REC, private = in->propagation & MS_SLAVE ? MS_SLAVE : MS_PRIVATE;
	const char *rootfs = at(in->rootfs);
	u64 n = length(rootfs), i;
	long err, root;

	check(STEP_PROPAGATION, call(SYS_mount, 0, "/", 0, all, 0));
	if (n >= sizeof(walk))
		fail(STEP_ROOTFS, -ENAMETOOLONG);
	for (i = 0; i <= n; i++)
		walk[i] = rootfs[i];
	while ((err = call(SYS_mount, 0, n ? walk : "/", 0, private, 0)) == -EINVAL && n) { /* it is no mount point */
		while (n && walk[--n] != '/')
			;
		walk[n] = 0;
	}
	check(STEP_PROPAGATION, err);
	check(STEP_ROOTFS, call(SYS_mount, rootfs, rootfs, "bind", MS_BIND | MS_REC, 0));
	root = call(SYS_openat, AT_FDCWD, rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC);
	check(STEP_ROOTFS, root);
	return root;
}

/* The links of /dev. Its devices and terminals are there. */
static void link_dev(long root)
{
	static const char *const links[][2] = {
		{ "/proc/self/fd", "fd" }, { "/proc/self/fd/0", "stdin" }, { "/proc/self/fd/1", "stdout" }, { "/proc/self/fd/2", "stderr" },
		{ "/proc/kcore", "core" },
	};
	long dev = in_root(root, "/dev", O_DIRECTORY, 0), err;
	struct stat s;
	u32 i, n = sizeof(links) / sizeof(links[0]);

	check(STEP_DEV, dev);
	err = call(SYS_unlinkat, dev, "ptmx", 0);
	if (err < 0 && err != -ENOENT)
		fail(STEP_DEV, err);
	check(STEP_DEV, call(SYS_symlinkat, "pts/ptmx", dev, "ptmx"));
	if (call(SYS_fstatat, AT_FDCWD, "/proc/kcore", &s, 0) < 0)
		n--;
	for (i = 0; i < n; i++) {
		err = call(SYS_symlinkat, links[i][0], dev, links[i][1]);
		if (err < 0 && err != -EEXIST)
			fail(STEP_DEV, err);
	}
	call(SYS_close, dev);
}

static void pivot(long root)
{
	long old = call(SYS_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC);

	check(STEP_PIVOT, old);
	check(STEP_PIVOT, call(SYS_fchdir, root));
	check(STEP_PIVOT, call(SYS_pivot_root, ".", "."));
	check(STEP_PIVOT, call(SYS_fchdir, old));
	check(STEP_PIVOT, call(SYS_mount, 0, ".", 0, MS_SLAVE | MS_REC, 0));
	check(STEP_PIVOT, call(SYS_umount2, ".", MNT_DETACH));
	check(STEP_PIVOT, call(SYS_chdir, "/"));
	call(SYS_close, old);
	call(SYS_close, root);
}

static int is_null(long fd)
{
	struct stat s;

	return !call(SYS_fstat, fd, &s) && (s.mode & S_IFMT) == S_IFCHR && s.rdev == 0x103;
}

/* Standard streams that are the node's /dev/null become the container's. */
static void reopen_null(void)
{
	long null = call(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
	u32 i;

	check(STEP_NULL, null);
	if (!is_null(null))
		fail(STEP_NULL, -EINVAL);
	for (i = 0; i < 3; i++)
		if (is_null(i))
			check(STEP_NULL, call(SYS_dup3, null, i, 0));
	call(SYS_close, null);
}

/* The working directory, in the container by now. */
static void make_cwd(const char *cwd)
{
	u64 n = length(cwd), i;

	if (n >= sizeof(walk))
		fail(STEP_MAKE_CWD, -ENAMETOOLONG);
	for (i = 0; i <= n; i++) {
		if (i && (!cwd[i] || cwd[i] == '/')) {
			struct stat s;
			long err;

			walk[i] = 0;
			err = call(SYS_fstatat, AT_FDCWD, walk, &s, 0);
			if (err == -ENOENT)
				err = call(SYS_mkdirat, AT_FDCWD, walk, 0755);
			check(STEP_MAKE_CWD, err);
		}
		walk[i] = cwd[i];
	}
}

/* Opens a path of the container's to mount something on it; no error if it is not there. */
static long open_covered(u32 step, const char *path)
{
	long fd = call(SYS_openat, AT_FDCWD, path, O_PATH | O_CLOEXEC);

	if (fd != -ENOENT)
		check(step, fd);
	return fd;
}

static int is_root(long fd)
{
	struct stat r, s;

	return !call(SYS_fstatat, AT_FDCWD, "/", &r, 0) && !call(SYS_fstat, fd, &s) && r.dev == s.dev && r.ino == s.ino;
}

static void make_readonly(const char *path)
{
	/* As a remount with the flags that libcontainer keeps; this one it does not know. */
	u64 attr[4] = { MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSYMFOLLOW, 0, 0 };
	long fd = open_covered(STEP_READONLY, path), tree;

	if (fd < 0)
		return;
	if (is_root(fd)) /* what covered it would not be the root */
		fail(STEP_READONLY, -EXDEV);
	tree = call(SYS_open_tree, fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	check(STEP_READONLY, tree);
	check(STEP_READONLY, call(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, attr, sizeof(attr)));
	check(STEP_READONLY, attach(tree, fd));
	call(SYS_close, tree);
	call(SYS_close, fd);
}

/* An empty folder that nothing can be written into. */
static long empty_folder(void)
{
	long fs = call(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), mount;

	check(STEP_MASK, fs);
	check(STEP_MASK, call(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", "tmpfs", 0));
	check(STEP_MASK, call(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "nr_blocks", "1", 0));
	check(STEP_MASK, call(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "nr_inodes", "1", 0));
	check(STEP_MASK, call(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "ro", 0, 0));
	check(STEP_MASK, call(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0));
	mount = call(SYS_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY);
	check(STEP_MASK, mount);
	call(SYS_close, fs);
	return mount;
}

/* Covers files by /dev/null and folders by an empty one, which they share. */
static void mask(const u32 *paths, u32 n)
{
	long null = call(SYS_openat, AT_FDCWD, "/dev/null", O_PATH | O_CLOEXEC), empty = -1;
	struct stat s;
	u32 i;

	check(STEP_MASK, null);
	if (!is_null(null))
		fail(STEP_MASK, -EINVAL);
	for (i = 0; i < n; i++) {
		long fd = open_covered(STEP_MASK, at(paths[i])), tree;

		if (fd < 0)
			continue;
		if (is_folder(fd) && empty < 0) {
			empty = empty_folder();
			check(STEP_MASK, attach(empty, fd));
		} else {
			tree = call(SYS_open_tree, is_folder(fd) ? empty : null, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
			check(STEP_MASK, tree);
			check(STEP_MASK, attach(tree, fd));
			call(SYS_close, tree);
		}
		call(SYS_close, fd);
	}
	if (empty >= 0)
		call(SYS_close, empty);
	call(SYS_close, null);
	/* libcontainer reads it after this, and says so if it cannot. */
	check(STEP_MASK, call(SYS_fstatat, AT_FDCWD, "/proc/sys/kernel/cap_last_cap", &s, 0));
}

/* All that a container sees of files, from the mounts of the node to its own root. */
static void make_root(const struct init *in, const char *cwd)
{
	const struct mount *mounts = at(in->mounts);
	const struct remount *remounts = at(in->remounts);
	const u32 *readonly = at(in->readonly);
	long root = prepare_root(in);
	u32 i;

	for (i = 0; i < in->mounts_len; i++)
		mount_one(root, &mounts[i]);
	link_dev(root);
	pivot(root);
	if (in->root_propagation)
		check(STEP_PROPAGATION, call(SYS_mount, 0, "/", 0, in->root_propagation, 0));
	reopen_null();
	make_cwd(cwd);
	for (i = 0; i < in->remounts_len; i++)
		check(STEP_READONLY, call(SYS_mount, 0, at(remounts[i].path), 0, remounts[i].flags, 0));
	if (in->flags & READONLY_ROOT)
		check(STEP_READONLY, call(SYS_mount, 0, "/", 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0));
	for (i = 0; i < in->readonly_len; i++)
		make_readonly(at(readonly[i]));
	if (in->masked_len)
		mask(at(in->masked), in->masked_len);
}

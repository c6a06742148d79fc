package spec

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// maxUserFile bounds what is read of an image's passwd and group, in bytes.
const maxUserFile = 16 << 20

// A User is who runs a container.
type User struct {
	UID, GID uint32
	// AdditionalGids are sorted, without duplicates, and contain GID: a file of the group must stay accessible to a process
	// that changes its primary group.
	AdditionalGids []uint32
}

func (u User) oci() specs.User {
	return specs.User{UID: u.UID, GID: u.GID, AdditionalGids: slices.Clone(u.AdditionalGids)}
}

// ContainerUser is the user that CRI shows in a container's status.
func ContainerUser(u specs.User) *cri.ContainerUser {
	linux := &cri.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.AdditionalGids {
		linux.SupplementalGroups = append(linux.SupplementalGroups, int64(g))
	}
	return &cri.ContainerUser{Linux: linux}
}

// ResolveUser finds out who runs a container: run_as_username or run_as_user, with run_as_group, else the image's user,
// else root. Names are looked up in /etc/passwd and /etc/group below root, which no symbolic link can leave. With the
// policy Merge (the default) the groups that /etc/group gives the user are added to the supplemental groups of the
// request. A name that is not there is ErrInvalidArgument.
func ResolveUser(root string, image ocispec.ImageConfig, sc *cri.LinuxContainerSecurityContext) (User, error) {
	want, err := wantedUser(image, sc)
	if err != nil {
		return User{}, err
	}
	u := User{UID: want.uid, GID: want.gid}
	entry, err := lookupUser(root, want)
	if err != nil {
		return User{}, err
	}
	if entry != nil {
		u.UID = uint32(entry.Uid)
		if !want.hasGID {
			u.GID = uint32(entry.Gid)
		}
	}
	var name string
	if entry != nil && sc.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Merge {
		name = entry.Name
	}
	if err := u.addGroups(root, name, want); err != nil {
		return User{}, err
	}
	for _, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > math.MaxInt32 {
			return User{}, invalid("linux.security_context.supplemental_groups", "group %d is out of range", g)
		}
		u.AdditionalGids = append(u.AdditionalGids, uint32(g))
	}
	u.AdditionalGids = append(u.AdditionalGids, u.GID)
	slices.Sort(u.AdditionalGids)
	u.AdditionalGids = slices.Compact(u.AdditionalGids)
	return u, nil
}

// A userWish is a user as it was asked for: name or number, and perhaps a group by name or number.
type userWish struct {
	field     string // where it comes from, for errors
	name      string // "" if the user is a number
	uid, gid  uint32
	groupName string
	hasGID    bool // gid or groupName was asked for
}

func wantedUser(image ocispec.ImageConfig, sc *cri.LinuxContainerSecurityContext) (userWish, error) {
	const field = "linux.security_context."
	if p := sc.GetSupplementalGroupsPolicy(); p != cri.SupplementalGroupsPolicy_Merge && p != cri.SupplementalGroupsPolicy_Strict {
		return userWish{}, invalid(field+"supplemental_groups_policy", "policy %d is not known", p)
	}
	var want userWish
	switch {
	case sc.GetRunAsUsername() != "":
		want = userWish{field: field + "run_as_username"}
		if err := want.setUser(sc.GetRunAsUsername()); err != nil {
			return want, err
		}
	case sc.GetRunAsUser() != nil:
		want = userWish{field: field + "run_as_user"}
		if err := want.setUser(strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10)); err != nil {
			return want, err
		}
	case sc.GetRunAsGroup() != nil:
		return want, invalid(field+"run_as_group", "a group needs run_as_user or run_as_username")
	default:
		want = userWish{field: fmt.Sprintf("image user %.100q", image.User)}
		name, group, _ := strings.Cut(image.User, ":")
		if err := want.setUser(name); err != nil {
			return want, err
		}
		return want, want.setGroup(group)
	}
	if g := sc.GetRunAsGroup(); g != nil {
		want.field = field + "run_as_group"
		return want, want.setGroup(strconv.FormatInt(g.GetValue(), 10))
	}
	return want, nil
}

func (w *userWish) setUser(s string) (err error) {
	if s == "" {
		return nil
	}
	w.uid, w.name, err = w.numberOrName(s)
	return err
}

func (w *userWish) setGroup(s string) (err error) {
	if s == "" {
		return nil
	}
	w.hasGID = true
	w.gid, w.groupName, err = w.numberOrName(s)
	return err
}

// numberOrName reads an id. libcontainer takes ids up to MaxInt32.
func (w *userWish) numberOrName(s string) (id uint32, name string, err error) {
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && (n < 0 || n > math.MaxInt32):
		return 0, "", invalid(w.field, "id %.100s is out of range", s)
	case err != nil:
		return 0, s, nil
	}
	return uint32(n), "", nil
}

// lookupUser finds the entry of /etc/passwd; nil if the user is a number that has none.
func lookupUser(root string, want userWish) (*user.User, error) {
	var found []user.User
	err := withImageFile(root, "etc/passwd", func(r io.Reader) (err error) {
		found, err = user.ParsePasswdFilter(r, func(u user.User) bool {
			if want.name != "" {
				return u.Name == want.name
			}
			return u.Uid == int(want.uid)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		if want.name != "" {
			return nil, invalid(want.field, "user %.100q is not in the image's /etc/passwd", want.name)
		}
		return nil, nil
	}
	if u := found[0]; u.Uid < 0 || u.Uid > math.MaxInt32 || u.Gid < 0 || u.Gid > math.MaxInt32 {
		return nil, invalid(want.field, "the ids of user %q in the image's /etc/passwd are out of range", u.Name)
	}
	return &found[0], nil
}

// addGroups reads /etc/group: for the number of the wanted group, and for the groups of which the user is a member
// (member "" has none).
func (u *User) addGroups(root, member string, want userWish) error {
	if want.groupName == "" && member == "" {
		return nil
	}
	named := want.groupName == ""
	err := withImageFile(root, "etc/group", func(r io.Reader) error {
		_, err := user.ParseGroupFilter(r, func(g user.Group) bool {
			if g.Gid < 0 || g.Gid > math.MaxInt32 {
				return false
			}
			if !named && g.Name == want.groupName {
				named = true
				u.GID = uint32(g.Gid)
			}
			// A group with the user's own name is its primary one, whether or not the user is listed.
			if member != "" && g.Name != member && slices.Contains(g.List, member) {
				u.AdditionalGids = append(u.AdditionalGids, uint32(g.Gid))
			}
			return false
		})
		return err
	})
	if err == nil && !named {
		return invalid(want.field, "group %.100q is not in the image's /etc/group", want.groupName)
	}
	return err
}

// withImageFile calls read with a file below root; a file that is not there reads as empty.
//
// The image is not trusted: its symbolic links are followed as the container would follow them, never out of root, and
// nothing but a regular file is opened (a FIFO would block us, a device could do anything).
func withImageFile(root, name string, read func(io.Reader) error) error {
	f, err := openInRoot(root, name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return read(strings.NewReader(""))
	}
	if err != nil {
		return fmt.Errorf("open the image's /%s: %w", name, err)
	}
	defer f.Close()
	limited := &io.LimitedReader{R: f, N: maxUserFile}
	err = read(limited)
	if errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("the image's /%s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("read the image's /%s: %w", name, err)
	}
	if limited.N == 0 {
		return fmt.Errorf("the image's /%s is larger than %d bytes: %w", name, maxUserFile, errdefs.ErrInvalidArgument)
	}
	return nil
}

func openInRoot(root, name string) (*os.File, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd := -1
	// The kernel answers EAGAIN when something was renamed while it looked; nobody does this for long.
	for range 16 {
		fd, err = unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("not a regular file: %w", errdefs.ErrInvalidArgument)
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}

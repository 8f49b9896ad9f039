package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// Account is whom the process is to become. A nil Account is whom it is.
type Account struct {
	UID, GID int
	Groups   []int // supplementary
	name     string
}

// Lookup finds the account of a user by name or number. With a group, that one
// and no other is its group; else it has those of the user.
func Lookup(name, group string) (*Account, error) {
	a := &Account{name: name, GID: -1}
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			u = nil
		}
	}
	switch uid, numeric := strconv.Atoi(name); {
	case u != nil:
		if err := a.take(u); err != nil {
			return nil, err
		}
	case numeric == nil && uid > 0:
		a.UID = uid
	default:
		return nil, fmt.Errorf("user %s: there is no such user: make it with useradd --system %s, or give a number", name, name)
	}
	if group != "" {
		if err := a.takeGroup(group); err != nil {
			return nil, err
		}
	}
	switch {
	case a.GID < 0:
		return nil, fmt.Errorf("user %s: a number without an entry in /etc/passwd has no group: give the group as well", name)
	case a.UID == 0:
		return nil, fmt.Errorf("user %s: that is root, who has all rights: choose another user", name)
	case !a.is() && os.Geteuid() != 0:
		return nil, fmt.Errorf("user %s: only root can become another user: start as root, or as %s", name, name)
	}
	return a, nil
}

// take is the account as the database of users has it.
func (a *Account) take(u *user.User) (err error) {
	if a.UID, err = strconv.Atoi(u.Uid); err != nil {
		return err
	}
	if a.GID, err = strconv.Atoi(u.Gid); err != nil {
		return err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("groups of user %s: %w", u.Username, err)
	}
	for _, id := range ids {
		gid, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		a.Groups = append(a.Groups, gid)
	}
	return nil
}

func (a *Account) takeGroup(name string) error {
	id := name
	if g, err := user.LookupGroup(name); err == nil {
		id = g.Gid
	}
	gid, err := strconv.Atoi(id)
	if err != nil || gid < 0 {
		return fmt.Errorf("group %s: there is no such group: make it with groupadd --system %s, or give a number", name, name)
	}
	a.GID, a.Groups = gid, []int{gid}
	return nil
}

// Own gives the file at path to the account.
func (a *Account) Own(path string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(path, a.UID, a.GID)
}

// Become makes all threads of the process a's, for good. Who is a already needs no
// right to become it.
func (a *Account) Become() error {
	if a == nil || a.is() {
		return nil
	}
	// Groups first: without root there is no right to change them.
	for _, step := range []struct {
		what string
		err  func() error
	}{
		{"setting its groups", func() error { return syscall.Setgroups(a.Groups) }},
		{"setting its group", func() error { return syscall.Setresgid(a.GID, a.GID, a.GID) }},
		{"setting its user", func() error { return syscall.Setresuid(a.UID, a.UID, a.UID) }},
	} {
		if err := step.err(); err != nil {
			return fmt.Errorf("becoming user %s: %s: %w", a.name, step.what, err)
		}
	}
	// A process may be allowed to change back by more than its user.
	if syscall.Setuid(0) == nil || !a.is() {
		return fmt.Errorf("becoming user %s: %w", a.name, errors.New("the way back to root stayed open: start without extra capabilities"))
	}
	return nil
}

func (a *Account) is() bool {
	return os.Getuid() == a.UID && os.Geteuid() == a.UID && os.Getgid() == a.GID && os.Getegid() == a.GID
}

package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// mendPause is the least time between two repairs: somebody may take the rules away again and again.
const mendPause = time.Second

// A ruleWatch calls back when something was taken out of a table of nftables, by whomever. The kernel tells of each change,
// and of nothing else, so that it costs nothing while there are none.
type ruleWatch struct {
	events *os.File
	table  string
	lost   func()
	done   chan struct{}
}

// watchRules begins. The caller closes what it returns.
func watchRules(table string, lost func()) (*ruleWatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	w := &ruleWatch{events: os.NewFile(uintptr(fd), "nftables events"), table: table, lost: lost, done: make(chan struct{})}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		w.events.Close()
		return nil, os.NewSyscallError("bind", err)
	}
	go w.run()
	return w, nil
}

func (w *ruleWatch) run() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.events.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // told of too much at once: look, rather than guess what
			w.lost()
		case err != nil:
			return // closed
		case slices.ContainsFunc(messages(buf[:n]), w.concerns):
			w.lost()
		}
	}
}

func (w *ruleWatch) concerns(m nftMessage) bool {
	return removes(m.kind) && m.family == unix.NFPROTO_INET && tableOf(m.attributes) == w.table
}

// close ends the watch. No callback runs after it has returned.
func (w *ruleWatch) close() error {
	err := w.events.Close()
	<-w.done
	return err
}

// nftMessage is one message of nftables: what happened, in which family, to what.
type nftMessage struct {
	kind       int
	family     uint8
	attributes []byte
}

// messages takes apart what was read; what does not look like a message ends it.
func messages(data []byte) (found []nftMessage) {
	for len(data) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(data))
		kind := binary.NativeEndian.Uint16(data[4:])
		if length < unix.SizeofNlMsghdr || length > len(data) {
			return found
		}
		if body := data[unix.SizeofNlMsghdr:length]; kind>>8 == unix.NFNL_SUBSYS_NFTABLES && len(body) >= nl.SizeofNfgenmsg {
			found = append(found, nftMessage{int(kind & 0xff), body[0], body[nl.SizeofNfgenmsg:]})
		}
		data = data[min((length+3)&^3, len(data)):]
	}
	return found
}

// removes says whether a message tells of something that went and takes host ports or masquerading along.
func removes(kind int) bool {
	return kind == unix.NFT_MSG_DELTABLE || kind == unix.NFT_MSG_DELCHAIN || kind == unix.NFT_MSG_DELRULE
}

// tableOf is the table that a message is about: attribute 1 of each kind that removes tells of.
func tableOf(attributes []byte) string {
	return string(bytes.TrimRight(attribute(attributes, unix.NFTA_TABLE_NAME), "\x00"))
}

func attribute(data []byte, wanted uint16) []byte {
	for len(data) >= unix.SizeofRtAttr {
		length, kind := int(binary.NativeEndian.Uint16(data)), binary.NativeEndian.Uint16(data[2:])
		if length < unix.SizeofRtAttr || length > len(data) {
			return nil
		}
		if kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == wanted {
			return data[unix.SizeofRtAttr:length]
		}
		data = data[min((length+3)&^3, len(data)):]
	}
	return nil
}

// countRules asks the kernel how many rules a table has; none if there is no such table.
func countRules(table string) (int, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(table)))
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("count the rules of nftables table %s: %w", table, err)
	}
	count := 0
	for _, a := range answers {
		// Older kernels do not look at the name of the table.
		if len(a) >= nl.SizeofNfgenmsg && tableOf(a[nl.SizeofNfgenmsg:]) == table {
			count++
		}
	}
	return count, nil
}

// watchRules has rules that somebody else takes away made again at once. Without it Status does so, which is asked every
// few seconds where there is a kubelet.
func (b *Builtin) watchRules() {
	var err error
	b.watch, err = watchRules(b.firewall.table, b.rulesLost)
	if err != nil {
		b.log.Warn("rules that others take away will be noticed late, ignoring", "err", err)
	}
}

// rulesLost makes anew what somebody else took away. A change of the node's own leaves the table whole.
func (b *Builtin) rulesLost() {
	b.setup.Lock()
	whole, err := b.firewall.whole()
	if len(b.made) == 0 || whole {
		b.setup.Unlock()
		return
	}
	b.log.Warn("the rules of the pod network were taken away, making them anew", "table", b.firewall.table)
	ctx, cancel := context.WithTimeout(context.Background(), statusLimit)
	defer cancel()
	if err = errors.Join(err, b.setUp(ctx, b.made)); err != nil {
		b.log.Error("the rules of the pod network could not be made anew, Status tries again", "table", b.firewall.table, "err", err)
	}
	b.setup.Unlock()
	time.Sleep(mendPause)
}

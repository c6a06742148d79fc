package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A client may go without a word that reaches us. One that leaves much unsent for a process that does not read has that word
// behind it: the client's kernel keeps both, asks for room now and then, and gives up after some six minutes. One whose machine
// has gone leaves ours to send again for a quarter of an hour. So connections are looked at from time to time.
const (
	lookPeriod = 15 * time.Second
	// silentPeer is how long the kernel of a client may be silent that has something to acknowledge. A client that is there and
	// does not read is not silent.
	silentPeer = 30 * time.Second
)

// keepAlive asks a client's kernel, where nothing else does, and misses it after as long.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: silentPeer / 2, Interval: silentPeer / 6, Count: 3}

// missVanished closes the connections of clients that have gone without a word, until over is closed.
func (l *Listener) missVanished(over <-chan struct{}) {
	tick := time.NewTicker(lookPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-over:
			return
		}
		for _, c := range l.open() {
			vanished, err := c.hasVanished()
			if err != nil && !errors.Is(err, net.ErrClosed) {
				l.log.Debug("the client of a streaming connection cannot be looked for, ignoring", "err", err)
			}
			if vanished {
				_ = c.Close() // who writes to it waits as long as its kernel
			}
		}
	}
}

func (c *conn) hasVanished() (bool, error) {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return false, nil // a unix socket tells of every end at once
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false, err
	}
	var info *unix.TCPInfo
	var unread int
	var failed error
	if err := raw.Control(func(fd uintptr) {
		var err error
		info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		unread, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		failed = errors.Join(failed, err)
	}); err != nil {
		return false, err
	}
	if failed != nil {
		return false, failed
	}
	before := c.silentPeer
	c.silentPeer = isSilent(info)
	if c.silentPeer && before { // an answer may have been on its way before
		return true, nil
	}
	if unread == 0 {
		return false, nil // the word of its going would be read
	}
	return isOrphan(c.RemoteAddr().(*net.TCPAddr), c.LocalAddr().(*net.TCPAddr))
}

// isSilent reports whether the other kernel has been asked and does not answer. One that has no room is asked every two minutes at
// last, and has answered then.
func isSilent(i *unix.TCPInfo) bool {
	return (i.Retransmits > 0 || i.Probes > 0) && time.Duration(i.Last_ack_recv)*time.Millisecond >= silentPeer
}

// isOrphan reports whether there is a connection between the two addresses here, and its first end is nobody's any more. Of a
// client elsewhere that cannot be known.
func isOrphan(from, to *net.TCPAddr) (bool, error) {
	q := diagRequest{from: from, to: to}
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	req.AddData(q)
	answers, err := req.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	switch {
	case errors.Is(err, syscall.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("sock_diag: %w", err)
	case len(answers) != 1 || len(answers[0]) < diagAnswerSize:
		return false, errors.New("sock_diag: an answer that is none")
	}
	return binary.NativeEndian.Uint32(answers[0][diagInode:]) == 0, nil
}

// diagRequest is a struct inet_diag_req_v2 of the kernel, for one connection.
type diagRequest struct{ from, to *net.TCPAddr }

// Sizes and places in what the kernel takes and answers (struct inet_diag_msg).
const (
	diagRequestSize = 56
	diagInode       = 68
	diagAnswerSize  = 72
)

func (diagRequest) Len() int { return diagRequestSize }

func (d diagRequest) Serialize() []byte {
	family, from, to := byte(unix.AF_INET), d.from.IP.To4(), d.to.IP.To4()
	if from == nil || to == nil {
		family, from, to = unix.AF_INET6, d.from.IP.To16(), d.to.IP.To16()
	}
	b := make([]byte, diagRequestSize)
	b[0], b[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // in all states
	binary.BigEndian.PutUint16(b[8:], uint16(d.from.Port))
	binary.BigEndian.PutUint16(b[10:], uint16(d.to.Port))
	copy(b[12:], from)
	copy(b[28:], to)
	binary.NativeEndian.PutUint64(b[48:], ^uint64(0)) // whatever its cookie
	return b
}

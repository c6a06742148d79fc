package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/network/netns"
)

// dialLimit is how long a port of a pod may take to accept a connection from its own loopback.
const dialLimit = 10 * time.Second

// PortForward connects stream to a port on the loopback of the sandbox, over IPv4 or, where nobody listens there, over
// IPv6. It returns when both directions have ended, or ctx has. It closes stream.
func (r *Runtime) PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	sb, err := r.index.findSandbox(sandboxID)
	if err != nil {
		return err
	}
	if !sb.ready() {
		return fmt.Errorf("forward port %d: sandbox %s is not ready: %w", port, sandboxID, errdefs.ErrFailedPrecondition)
	}
	conn, err := dialSandbox(ctx, sb.record.Anchors.NetNS, port)
	if err != nil {
		return fmt.Errorf("forward port %d of sandbox %s: %w", port, sandboxID, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() {
		conn.Close()
		stream.Close()
	})
	defer stop()
	return relay(conn, stream)
}

// dialSandbox connects from inside the namespace; "" is the host's.
func dialSandbox(ctx context.Context, netnsPath string, port int32) (*net.TCPConn, error) {
	var conn net.Conn
	dial := func() error {
		dialer := net.Dialer{Timeout: dialLimit}
		var failed error
		// A dial with an address, not a name, makes its socket on this thread: in the namespace.
		for _, host := range []string{"127.0.0.1", "::1"} {
			var err error
			if conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))); err == nil {
				return nil
			}
			failed = errors.Join(failed, err)
		}
		return failed
	}
	var err error
	if netnsPath == "" {
		err = dial()
	} else {
		err = netns.Do(netnsPath, dial)
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// relay copies both ways. The end of the client's direction is passed on as a half close; the end of the pod's ends all,
// for nobody would send an answer any more.
func relay(conn *net.TCPConn, stream io.ReadWriteCloser) error {
	var wg sync.WaitGroup
	var toPod error
	wg.Go(func() {
		_, toPod = io.Copy(conn, stream)
		_ = conn.CloseWrite() // the pod may have closed already
	})
	_, fromPod := io.Copy(stream, conn)
	stream.Close()
	conn.Close()
	wg.Wait()
	if errors.Is(toPod, net.ErrClosed) || errors.Is(toPod, io.ErrClosedPipe) {
		toPod = nil // we closed it
	}
	return errors.Join(fromPod, toPod)
}

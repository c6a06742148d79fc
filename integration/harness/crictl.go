package harness

import (
	"bytes"
	"context"
	"os/exec"
	"testing"
	"time"
)

// Crictl returns a crictl command for this node.
func (n *Node) Crictl(ctx context.Context, args ...string) *exec.Cmd {
	socket := "unix://" + n.Socket
	return exec.CommandContext(ctx, Tool("crictl"), append([]string{"--runtime-endpoint", socket, "--image-endpoint", socket, "--timeout", Patience(30 * time.Second).String()}, args...)...)
}

// CrictlOutput runs crictl, which has to succeed, and returns its standard output.
func (n *Node) CrictlOutput(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	cmd := n.Crictl(Ctx(t), args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader([]byte(stdin)), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("crictl %q: %v\n%s%s", args, err, out, stderr.Bytes())
	}
	return string(out)
}

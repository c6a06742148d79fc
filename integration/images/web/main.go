// Command web is the web server of the demo pod and of the test images: one static program that stands in for nginx and
// httpd where only their outward behaviour matters.
//
// Every request is answered with the pod's name and its addresses, so that a person with curl, and a test, see which pod
// answered and over which family. Datagrams to the same port come back with the pod's name before them.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// settings are the command line. A program that shows a title hands them to its second incarnation in the environment.
type settings struct {
	Listen, PidFile, Title, Greeting string
}

const settingsEnv = "WEB_SETTINGS"

func main() {
	log.SetFlags(0)
	s, err := load()
	if err == nil && s.Title != "" {
		err = retitle(s)
	}
	if err == nil {
		err = serve(s)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func load() (settings, error) {
	var s settings
	if text := os.Getenv(settingsEnv); text != "" {
		err := json.Unmarshal([]byte(text), &s)
		return s, err
	}
	flag.StringVar(&s.Listen, "listen", ":80", "`address` to listen on, IPv4 and IPv6 where the host is empty")
	flag.StringVar(&s.PidFile, "pid-file", "", "`file` that receives the process id once the server listens")
	flag.StringVar(&s.Title, "title", "", "`text` to show as the command line in /proc, as nginx does with its master process")
	flag.StringVar(&s.Greeting, "greeting", "", "`text` to print at the start")
	flag.Parse()
	return s, nil
}

// retitle executes the program anew with the title as its whole visible command line: /proc/PID/cmdline shows the
// arguments, and only execve changes them without writing over the stack.
func retitle(s settings) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	title := s.Title
	s.Title = ""
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return syscall.Exec(self, []string{title}, append(os.Environ(), settingsEnv+"="+string(text)))
}

func serve(s settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()

	l, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return err
	}
	if s.PidFile != "" {
		if err := os.WriteFile(s.PidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return err
		}
	}
	datagrams, err := net.ListenPacket("udp", s.Listen)
	if err != nil {
		return err
	}
	go echo(datagrams)
	fmt.Printf("%slistening on %s\n", s.Greeting, l.Addr())
	server := &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		_ = server.Close() // a test server owes nobody a grace period
	}()
	if err := server.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// echo sends every datagram back with the pod's name before it.
func echo(c net.PacketConn) {
	name, _ := os.Hostname() // an empty name is an answer too
	for buf := make([]byte, 1500); ; {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(fmt.Appendf(nil, "%s %s", name, buf[:n]), from) // a datagram may be lost anyway
	}
}

// answer tells who serves the request and who asked.
func answer(w http.ResponseWriter, r *http.Request) {
	name, _ := os.Hostname() // an empty name is an answer too
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Hello from pod %s\n", name)
	for _, ip := range addresses() {
		fmt.Fprintf(w, "address %s\n", ip)
	}
	fmt.Fprintf(w, "client %s\n", r.RemoteAddr)
	fmt.Printf("%s %s %s\n", r.RemoteAddr, r.Method, r.URL.Path)
}

// addresses lists the global addresses of all interfaces.
func addresses() []string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return []string{err.Error()}
	}
	var ips []string
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			ips = append(ips, n.IP.String())
		}
	}
	return ips
}

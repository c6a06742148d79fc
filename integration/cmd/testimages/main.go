// Command testimages makes the images of the tests and of the demo, and serves those of the tests on loopback.
//
//	testimages make  -layout out/images -work out/cache
//	testimages demo  -file bin/demo-web.tar -work out/cache
//	testimages serve -layout out/images -hosts-dir /tmp/certs.d [-listen 127.0.0.1:5000]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/registry"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, context.Canceled) {
		log.Fatalf("testimages: %v", err)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("want one of the commands make, demo, serve")
	}
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	layout := flags.String("layout", "out/images", "OCI image layout `folder` with the test images")
	work := flags.String("work", "out/cache", "`folder` that keeps downloads and built programs")
	file := flags.String("file", "bin/demo-web.tar", "OCI archive to write (demo)")
	listen := flags.String("listen", "127.0.0.1:0", "loopback `address` to serve on (serve)")
	hostsDir := flags.String("hosts-dir", "", "certs.d `folder` to write, which sends all names of the images here (serve)")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "make":
		return images.Make(ctx, *layout, *work)
	case "demo":
		return images.MakeDemo(ctx, *file, *work)
	case "serve":
		return serve(ctx, *layout, *listen, *hostsDir)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func serve(ctx context.Context, layout, listen, hostsDir string) error {
	r, err := registry.Open(layout)
	if err != nil {
		return err
	}
	s, err := registry.Listen(r, listen)
	if err != nil {
		return err
	}
	defer s.Close()
	if hostsDir != "" {
		if err := s.WriteHosts(hostsDir, r.Hosts()...); err != nil {
			return err
		}
	}
	fmt.Printf("serving %s on http://%s\n", layout, s.Addr())
	<-ctx.Done()
	return nil
}

package network

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"

	"github.com/berth-node/berth/internal/conffile"
)

// loadConf reads the network in the configuration folder dir: its lexically first file. A first file that is broken is an
// error and not passed over for the next one, which is likely another program's network.
func loadConf(dir string) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CNI configuration (*.conflist, *.conf, *.json) in %s", dir)
	}
	slices.Sort(files)
	conf, err := loadConfFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", files[0], err)
	}
	return conf, nil
}

func loadConfFile(path string) (*libcni.NetworkConfigList, error) {
	if err := conffile.Check(path); err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, ".conflist") {
		return libcni.NetworkConfFromFile(path)
	}
	//lint:ignore SA1019 .conf and .json files hold one plugin, and are still in use
	single, err := libcni.ConfFromFile(path)
	if err != nil {
		return nil, err
	}
	if single.Network.Name == "" {
		return nil, errors.New("no name")
	}
	if single.Network.Type == "" {
		return nil, errors.New("no type: a list of plugins must be in a file named *.conflist")
	}
	//lint:ignore SA1019 see above
	return libcni.ConfListFromConf(single)
}

// A confWatch calls back when the files in a folder change. The folder may come, go and come again, its parents too.
type confWatch struct {
	dir     string
	changed func()
	events  *fsnotify.Watcher
	done    chan struct{}
}

func watchConf(dir string, changed func()) (*confWatch, error) {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	w := &confWatch{dir: dir, changed: changed, events: events, done: make(chan struct{})}
	w.arm()
	go w.run()
	return w, nil
}

// arm watches the folder and its nearest parent that exists: the one that sees it being removed or made. Twice, since a
// folder may be made between the look at it and the watch on its parent.
func (w *confWatch) arm() {
	for range 2 {
		for dir := w.dir; ; dir = filepath.Dir(dir) {
			err := w.events.Add(dir)
			if dir == filepath.Dir(dir) || err == nil && dir != w.dir {
				break
			}
		}
	}
}

func (w *confWatch) run() {
	defer close(w.done)
	for {
		select {
		case event, ok := <-w.events.Events:
			if !ok {
				return
			}
			if w.concerns(event) {
				w.arm()
				w.changed()
			}
		case _, ok := <-w.events.Errors:
			if !ok {
				return
			}
			w.arm() // events were lost; look, rather than guess which
			w.changed()
		}
	}
}

// concerns says whether an event is about the folder, what is in it, or a folder above it.
func (w *confWatch) concerns(event fsnotify.Event) bool {
	if event.Op == fsnotify.Chmod {
		return false
	}
	return event.Name == w.dir || filepath.Dir(event.Name) == w.dir || strings.HasPrefix(w.dir, event.Name+"/")
}

// close ends the watch. No callback runs after it has returned.
func (w *confWatch) close() error {
	err := w.events.Close()
	<-w.done
	return err
}

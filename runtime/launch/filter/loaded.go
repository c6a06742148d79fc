package filter

import (
	"encoding/binary"
	"errors"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// Loaded is a filter as the kernel gets it from libcontainer: the program of libseccomp with libcontainer's own instructions in
// front of it. It is for an init that is not libcontainer's.
type Loaded struct {
	Code []byte
	// Flags are those of seccomp(2).
	Flags uint32
}

// loadedSuffix ends the name of an entry with what is loaded. It has the flags in front, in the room of an instruction.
const loadedSuffix = "-loaded"

// ErrUnknown says that nobody has learned yet what libcontainer loads.
var ErrUnknown = errors.New("the filter that libcontainer loads for its seccomp profile is not known")

// hopeless are the keys of what this process could not learn.
var hopeless = map[string]bool{}

// Loaded returns what libcontainer loads for config, if it was learned, and what is to be on record of config: see brief.
func (c Cache) Loaded(config *configs.Seccomp) (*Loaded, *configs.Seccomp, error) {
	key, err := keyOf(config)
	if err != nil {
		return nil, nil, err
	}
	data, err := readEntry(filepath.Join(c.Dir, key+loadedSuffix))
	if err == nil && len(data) < instruction {
		err = errDamaged
	}
	if err == nil {
		err = check(data[instruction:])
	}
	if err != nil {
		return nil, nil, ErrUnknown
	}
	rest := config
	if Worthwhile(config) {
		rest = briefOf(key, config)
	}
	return &Loaded{Code: data[instruction:], Flags: binary.LittleEndian.Uint32(data)}, rest, nil
}

// Learn keeps what libcontainer loads for config, which find finds out, unless it is kept already. What find cannot find out it is
// not asked for again.
func (c Cache) Learn(config *configs.Seccomp, find func() (*Loaded, error)) error {
	key, err := keyOf(config)
	if err != nil || hopeless[key] {
		return err
	}
	if _, _, err := c.Loaded(config); err == nil { // by another launcher, meanwhile
		return nil
	}
	loaded, err := find()
	if err == nil {
		err = check(loaded.Code)
	}
	if err != nil {
		hopeless[key] = true
		return err
	}
	data := make([]byte, instruction, instruction+len(loaded.Code))
	binary.LittleEndian.PutUint32(data, loaded.Flags)
	return c.keep(filepath.Join(c.Dir, key+loadedSuffix), append(data, loaded.Code...))
}

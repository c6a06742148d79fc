package hold

import _ "embed"

//go:embed hold_amd64
var binary []byte

package enter

import _ "embed"

//go:embed enter_amd64
var program []byte

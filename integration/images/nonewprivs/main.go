// Command nonewprivs prints the effective user id. Installed set-user-ID root it shows whether the kernel let it gain
// privileges.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Printf("Effective uid: %d\n", os.Geteuid()) }

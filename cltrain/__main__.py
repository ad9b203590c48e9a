from cltrain.cli import main

main()

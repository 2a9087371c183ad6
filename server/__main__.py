from gguf_serve.server.cli import main

main(prog_name="serve")

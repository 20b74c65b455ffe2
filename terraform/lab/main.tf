# A replacement for a lost database host, for the lab: really starts an agent of the same node on an empty disk.
# Only the built-in terraform_data is used, so that no provider has to be fetched. The controller clones the node's data itself.

terraform {
  required_version = ">= 1.4"
}

variable "node" {
  description = "The node that is replaced; its name and addresses stay."
  type        = string
}

variable "epoch" {
  description = "The epoch in which it was lost: a node that is lost again is replaced again."
  type        = string
}

variable "program" {
  description = "The stormglass program on the host."
  type        = string
}

variable "directory" {
  description = "The directory of all hosts of the lab."
  type        = string
}

variable "images" {
  description = "Where the configuration of each agent is kept, as an image of a host holds it."
  type        = string
}

resource "terraform_data" "host" {
  input = {
    node      = var.node
    program   = var.program
    directory = "${var.directory}/${var.node}"
    image     = "${var.images}/${var.node}.toml"
  }
  triggers_replace = [var.node, var.epoch]

  # The agent outlives Terraform: a session and a log of its own.
  provisioner "local-exec" {
    command = <<-EOT
      set -eu
      mkdir -p '${self.input.directory}/state'
      cp '${self.input.image}' '${self.input.directory}/agent.toml'
      cd '${self.input.directory}'
      setsid '${self.input.program}' agent --config '${self.input.directory}/agent.toml' </dev/null >>'${self.input.directory}/agent.log' 2>&1 &
    EOT
  }
}

output "node" {
  value = terraform_data.host.output.node
}

output "directory" {
  value = terraform_data.host.output.directory
}

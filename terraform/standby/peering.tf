# The other end of the peering that the primary stack asks for.

variable "peering" {
  description = "Output `peering` of the primary stack; empty until it is there."
  type        = string
  default     = ""
}

resource "aws_vpc_peering_connection_accepter" "primary" {
  count                     = var.peering == "" ? 0 : 1
  vpc_peering_connection_id = var.peering
  auto_accept               = true
}

resource "aws_route" "primary" {
  count                     = var.peering == "" ? 0 : 1
  route_table_id            = module.site.route_table
  destination_cidr_block    = local.peer
  vpc_peering_connection_id = aws_vpc_peering_connection_accepter.primary[0].id
}

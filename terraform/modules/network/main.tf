# One region: a VPC with private subnets in every zone, and public ones for NAT alone.

variable "name" { type = string }
variable "cidr" { type = string }
variable "zones" { type = list(string) }
variable "peer_cidr" {
  description = "The network of the other region, which reaches PostgreSQL and the agents."
  type        = string
}

resource "aws_vpc" "this" {
  cidr_block           = var.cidr
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

# Nothing is attached to the default group, and nothing passes it.
resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.this.id
}

resource "aws_subnet" "private" {
  for_each          = { for index, zone in var.zones : zone => index }
  vpc_id            = aws_vpc.this.id
  availability_zone = each.key
  cidr_block        = cidrsubnet(var.cidr, 4, each.value)
  tags              = { Name = "${var.name}-private-${each.key}" }
}

resource "aws_subnet" "public" {
  for_each                = { for index, zone in var.zones : zone => index }
  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = cidrsubnet(var.cidr, 4, each.value + 8)
  map_public_ip_on_launch = false
  tags                    = { Name = "${var.name}-public-${each.key}" }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
}

resource "aws_eip" "nat" {
  domain = "vpc"
}

resource "aws_nat_gateway" "this" {
  allocation_id = aws_eip.nat.id
  subnet_id     = aws_subnet.public[var.zones[0]].id
  depends_on    = [aws_internet_gateway.this]
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id
  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.this.id
  }
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.this.id
}

resource "aws_route" "out" {
  route_table_id         = aws_route_table.private.id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this.id
}

resource "aws_route_table_association" "public" {
  for_each       = aws_subnet.public
  subnet_id      = each.value.id
  route_table_id = aws_route_table.public.id
}

resource "aws_route_table_association" "private" {
  for_each       = aws_subnet.private
  subnet_id      = each.value.id
  route_table_id = aws_route_table.private.id
}

# PostgreSQL, agents and controllers: only from the two networks, never from anywhere.
resource "aws_security_group" "inside" {
  name        = "${var.name}-inside"
  description = "PostgreSQL, agents, controllers and etcd, from both networks of the cluster"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "inside" {
  for_each = {
    for pair in setproduct([var.cidr, var.peer_cidr], ["5432", "8008", "8432", "2379", "2380", "5000", "5001"]) :
    "${pair[0]}-${pair[1]}" => pair
  }
  security_group_id = aws_security_group.inside.id
  description       = "port ${each.value[1]} from ${each.value[0]}"
  cidr_ipv4         = each.value[0]
  from_port         = tonumber(each.value[1])
  to_port           = tonumber(each.value[1])
  ip_protocol       = "tcp"
}

resource "aws_vpc_security_group_egress_rule" "inside" {
  for_each          = toset([var.cidr, var.peer_cidr])
  security_group_id = aws_security_group.inside.id
  description       = "everything to ${each.value}"
  cidr_ipv4         = each.value
  ip_protocol       = "-1"
}

resource "aws_vpc_security_group_egress_rule" "packages" {
  security_group_id = aws_security_group.inside.id
  description       = "packages and the backup repository, by TLS"
  cidr_ipv4         = "0.0.0.0/0"
  from_port         = 443
  to_port           = 443
  ip_protocol       = "tcp"
}

output "vpc" { value = aws_vpc.this.id }
output "subnets" { value = [for zone in var.zones : aws_subnet.private[zone].id] }
output "security_group" { value = aws_security_group.inside.id }
output "route_table" { value = aws_route_table.private.id }

# Hosts of one role: database, proxy, controller or application. cloud-init installs what the role needs from the package.

variable "name" { type = string }
variable "role" {
  description = "database, proxy, controller or application"
  type        = string
  validation {
    condition     = contains(["database", "proxy", "controller", "application"], var.role)
    error_message = "The role is database, proxy, controller or application."
  }
}
variable "hosts" {
  description = "Host name to subnet."
  type        = map(string)
}
variable "image" { type = string }
variable "instance_type" { type = string }
variable "security_groups" { type = list(string) }
variable "instance_profile" { type = string }
variable "kms_key" { type = string }
variable "data_gigabytes" {
  description = "Size of the data volume; 0 for none."
  type        = number
  default     = 0
}
variable "package" {
  description = "URL of the stormglass package."
  type        = string
}
variable "configuration" {
  description = "Host name to the text of its configuration; secrets in it are references."
  type        = map(string)
}

resource "aws_instance" "this" {
  for_each                    = var.hosts
  ami                         = var.image
  instance_type               = var.instance_type
  subnet_id                   = each.value
  vpc_security_group_ids      = var.security_groups
  iam_instance_profile        = var.instance_profile
  associate_public_ip_address = false
  monitoring                  = true
  ebs_optimized               = true
  user_data_replace_on_change = true
  user_data = templatefile("${path.module}/cloud-init.yaml.tftpl", {
    role          = var.role
    package       = var.package
    configuration = var.configuration[each.key]
    has_volume    = var.data_gigabytes > 0
  })

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    encrypted   = true
    kms_key_id  = var.kms_key
    volume_type = "gp3"
  }

  tags = { Name = each.key, Cluster = var.name, Role = var.role }
}

# The data outlives the host, so that a replaced host finds it, and rewinds instead of copying everything.
resource "aws_ebs_volume" "data" {
  for_each          = var.data_gigabytes > 0 ? var.hosts : {}
  availability_zone = aws_instance.this[each.key].availability_zone
  size              = var.data_gigabytes
  type              = "gp3"
  encrypted         = true
  kms_key_id        = var.kms_key
  tags              = { Name = "${each.key}-data", Cluster = var.name }
}

resource "aws_volume_attachment" "data" {
  for_each    = aws_ebs_volume.data
  device_name = "/dev/sdf"
  volume_id   = each.value.id
  instance_id = aws_instance.this[each.key].id
}

output "addresses" {
  value = { for name, instance in aws_instance.this : name => instance.private_ip }
}
